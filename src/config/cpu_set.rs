//! Sets of CPUs in the kernel's list notation, `0-3,8,10-11`.

use std::collections::BTreeSet;
use std::fmt;

/// No kernel we run on has more; a typing error must not make us build a set of billions.
const CPU_MAX: u32 = 65_535;

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CpuSet(BTreeSet<u32>);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuSetError {
    #[error("expected a list of CPUs such as 0-3,8, found {0:?}")]
    NotAList(String),
    #[error("CPU range {0:?} ends before it starts")]
    Backwards(String),
    #[error("CPU {0} is above {1}")]
    TooLarge(u32, u32),
    #[error("the list names more CPUs than there can be")]
    TooMany,
}

impl CpuSet {
    /// Reads list notation; the empty text is the empty set.
    pub fn parse(text: &str) -> Result<Self, CpuSetError> {
        CpuSet::parse_up_to(text, CPU_MAX)
    }

    /// The same of a machine that has no CPU above `highest`. What is named again and again costs no more
    /// than what can be there.
    pub fn parse_up_to(text: &str, highest: u32) -> Result<Self, CpuSetError> {
        let (mut cpus, mut named) = (BTreeSet::new(), 0);
        if text.is_empty() {
            return Ok(CpuSet(cpus));
        }
        for range in text.split(',') {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (cpu(text, first, highest)?, cpu(text, last, highest)?);
            if last < first {
                return Err(CpuSetError::Backwards(range.to_owned()));
            }
            named += last - first + 1;
            if named > CPU_MAX + 1 {
                return Err(CpuSetError::TooMany);
            }
            cpus.extend(first..=last);
        }
        Ok(CpuSet(cpus))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn is_subset(&self, of: &CpuSet) -> bool {
        self.0.is_subset(&of.0)
    }

    pub fn contains(&self, cpu: u32) -> bool {
        self.0.contains(&cpu)
    }

    /// False if it was there.
    pub fn insert(&mut self, cpu: u32) -> bool {
        self.0.insert(cpu)
    }

    /// False if it was not there.
    pub fn remove(&mut self, cpu: u32) -> bool {
        self.0.remove(&cpu)
    }

    pub fn union(&self, other: &CpuSet) -> CpuSet {
        CpuSet(&self.0 | &other.0)
    }

    pub fn intersection(&self, other: &CpuSet) -> CpuSet {
        CpuSet(&self.0 & &other.0)
    }

    pub fn difference(&self, other: &CpuSet) -> CpuSet {
        CpuSet(&self.0 - &other.0)
    }

    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().copied()
    }
}

fn cpu(text: &str, number: &str, highest: u32) -> Result<u32, CpuSetError> {
    // `parse` alone would take a leading plus sign.
    let digits = number.bytes().all(|b| b.is_ascii_digit());
    let cpu = number.parse().ok().filter(|_| digits);
    match cpu.ok_or_else(|| CpuSetError::NotAList(text.to_owned()))? {
        cpu if cpu > highest => Err(CpuSetError::TooLarge(cpu, highest)),
        cpu => Ok(cpu),
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<I: IntoIterator<Item = u32>>(cpus: I) -> Self {
        CpuSet(cpus.into_iter().collect())
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cpus = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = cpus.next() {
            let mut last = first;
            while let Some(next) = cpus.next_if_eq(&(last + 1)) {
                last = next;
            }
            match last == first {
                true => write!(f, "{separator}{first}")?,
                false => write!(f, "{separator}{first}-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_printed_shortest() {
        let check = |text: &str, expected: &[u32], printed: &str| {
            let set = CpuSet::parse(text).expect(text);
            assert_eq!(set.iter().collect::<Vec<_>>(), expected);
            assert_eq!(set.to_string(), printed);
        };
        check("", &[], "");
        check("0", &[0], "0");
        check("0-3,8", &[0, 1, 2, 3, 8], "0-3,8");
        check("8,2,1,0", &[0, 1, 2, 8], "0-2,8");
        check("3-3", &[3], "3");
        check("0-1,1-2", &[0, 1, 2], "0-2");
    }

    #[test]
    fn sets_are_combined() {
        let set = |text| CpuSet::parse(text).expect("a list");
        let (some, others) = (set("0-3"), set("2-5"));
        assert_eq!(some.union(&others), set("0-5"));
        assert_eq!(some.intersection(&others), set("2-3"));
        assert_eq!(some.difference(&others), set("0-1"));
        let mut set = set("1");
        assert!(set.insert(2) && !set.insert(2) && set.contains(2) && set.remove(2) && !set.remove(2));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let check = |text: &str, expected: &str| {
            let error = CpuSet::parse(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        };
        check("a", "expected a list");
        check("1,", "expected a list");
        check("-1", "expected a list");
        check("+1", "expected a list");
        check("1-2-3", "expected a list");
        check("3-1", "ends before it starts");
        check("0-4000000000", "above 65535");
        check("0-65535,0-65535", "more CPUs than there can be");
    }
}
