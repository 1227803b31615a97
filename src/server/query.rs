//! The query of a request, in pairs.

use percent_encoding::percent_decode_str;

/// All of them in their order, decoded as forms are.
pub fn pairs(query: &str) -> Vec<(String, String)> {
    let plain = |part: &str| percent_decode_str(&part.replace('+', " ")).decode_utf8_lossy().into_owned();
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.map(|(key, value)| (plain(key), plain(value))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_decoded_as_forms_are() {
        let of = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(pairs("a=b+c%2B&&follow&a=%3D%26"), [of("a", "b c+"), of("follow", ""), of("a", "=&")]);
        assert!(pairs("").is_empty());
    }
}
