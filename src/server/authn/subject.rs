//! The subject of a certificate, as far as it names a user: a sequence of sets of pairs, in DER.
//!
//! Read here and not by x509-parser, which ends where it cannot read on and goes by what it has by
//! then: whoever is cut short is somebody else.

/// 2.5.4.3 and 2.5.4.10.
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const ORGANIZATION: &[u8] = &[0x55, 0x04, 0x0a];
/// 1.3.6.1.4.1.57683.2, Kubernetes' own: the user's UID.
const UID: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0x83, 0xc2, 0x53, 0x02];

const OBJECT_IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// The kinds of text that are a part of UTF-8: UTF8String, NumericString, PrintableString, and
/// IA5String.
const TEXTS: [u8; 4] = [0x0c, 0x12, 0x13, 0x16];

#[derive(Default, PartialEq, Eq, Debug)]
pub struct Subject {
    /// Of several the last, as Go has it.
    pub common_name: Option<String>,
    pub organizations: Vec<String>,
    pub uid: Option<String>,
}

impl Subject {
    /// `None` if the name cannot be read, or if what matters is written in letters that are not
    /// known here: half a name would be another's.
    pub fn read(mut whole: &[u8]) -> Option<Self> {
        let mut name = take(&mut whole, SEQUENCE)?;
        let mut subject = Subject::default();
        while !name.is_empty() {
            let mut set = take(&mut name, SET)?;
            while !set.is_empty() {
                let mut pair = take(&mut set, SEQUENCE)?;
                let kind = take(&mut pair, OBJECT_IDENTIFIER)?;
                if kind == COMMON_NAME {
                    subject.common_name = Some(text(pair)?).filter(|name| !name.is_empty());
                } else if kind == ORGANIZATION {
                    subject.organizations.push(text(pair)?);
                } else if kind == UID {
                    let uid = text(pair).filter(|uid| !uid.is_empty())?;
                    // With two it could be either of two users.
                    if subject.uid.replace(uid).is_some() {
                        return None;
                    }
                }
            }
        }
        whole.is_empty().then_some(subject)
    }
}

fn text(mut value: &[u8]) -> Option<String> {
    let (&tag, _) = value.split_first()?;
    let text = take(&mut value, tag)?;
    (TEXTS.contains(&tag) && value.is_empty()).then(|| std::str::from_utf8(text).ok().map(str::to_owned))?
}

/// The content of the next element, which has this tag. Names are short: a length of more than
/// two bytes is none that anybody writes.
fn take<'a>(rest: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let bytes: &'a [u8] = rest;
    let (length, content) = match *bytes {
        [found, length @ 0..=0x7f, ref content @ ..] if found == tag => (usize::from(length), content),
        [found, 0x81, length, ref content @ ..] if found == tag => (usize::from(length), content),
        [found, 0x82, high, low, ref content @ ..] if found == tag => {
            (usize::from(u16::from_be_bytes([high, low])), content)
        }
        _ => return None,
    };
    let (content, after) = content.split_at_checked(length)?;
    *rest = after;
    Some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        let [.., high, low] = content.len().to_be_bytes();
        match (high, low) {
            (0, 0..=0x7f) => [&[tag, low], content].concat(),
            (0, _) => [&[tag, 0x81, low], content].concat(),
            _ => [&[tag, 0x82, high, low], content].concat(),
        }
    }

    fn pair(kind: &[u8], tag: u8, text: &[u8]) -> Vec<u8> {
        let pair = [element(OBJECT_IDENTIFIER, kind), element(tag, text)].concat();
        element(SET, &element(SEQUENCE, &pair))
    }

    #[track_caller]
    fn check(name: &[u8], expected: Option<(Option<&str>, &[&str])>) {
        let read = Subject::read(&element(SEQUENCE, name));
        let read = read.as_ref().map(|read| (read.common_name.as_deref(), read.organizations.clone()));
        let expected =
            expected.map(|(name, groups)| (name, groups.iter().map(|&it| it.to_owned()).collect::<Vec<_>>()));
        assert_eq!(read, expected);
    }

    #[test]
    fn user_and_groups_are_read_off_the_subject() {
        let long = "g".repeat(200);
        let name = [
            pair(ORGANIZATION, 0x13, b"system:masters"),
            pair(&[0x55, 0x04, 0x06], 0x13, b"DE"),
            pair(COMMON_NAME, 0x0c, "zoë".as_bytes()),
            pair(ORGANIZATION, 0x0c, long.as_bytes()),
        ];
        check(&name.concat(), Some((Some("zoë"), &["system:masters", &long])));
        check(&[], Some((None, &[])));
        check(&pair(COMMON_NAME, 0x0c, b""), Some((None, &[])));
        check(&[pair(COMMON_NAME, 0x0c, b"one"), pair(COMMON_NAME, 0x0c, b"two")].concat(), Some((Some("two"), &[])));
    }

    #[test]
    fn a_uid_is_read_and_two_or_an_empty_one_are_nobody() {
        let uid = |text: &str| pair(UID, 0x0c, text.as_bytes());
        let read = |name: &[Vec<u8>]| Subject::read(&element(SEQUENCE, &name.concat())).map(|subject| subject.uid);
        assert_eq!(read(&[pair(COMMON_NAME, 0x0c, b"zo"), uid("7")]), Some(Some("7".to_owned())));
        assert_eq!(read(&[uid("7"), uid("7")]), None);
        assert_eq!(read(&[uid("")]), None);
    }

    #[test]
    fn what_cannot_be_read_is_nobody() {
        // BMPString, not UTF-8, more than the value.
        check(&pair(COMMON_NAME, 0x1e, b"\0a"), None);
        check(&pair(COMMON_NAME, 0x0c, b"\xff"), None);
        let whole = pair(COMMON_NAME, 0x0c, b"admin");
        for length in 1..whole.len() {
            check(&whole[..length], None);
        }
        let whole = element(SEQUENCE, &whole);
        for length in 0..whole.len() {
            assert_eq!(Subject::read(&whole[..length]), None);
        }
        assert_eq!(Subject::read(&[&whole[..], &[0]].concat()), None);
        for seed in 0..2000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut bytes = whole.clone();
            let place = random.usize(..bytes.len());
            bytes[place] = random.u8(..);
            // Whatever it is taken for, nothing panics.
            Subject::read(&bytes);
        }
    }
}
