//! The known word nearest to a mistyped one.

/// The word of `known` that takes the fewest single-letter edits to reach from `word`; the
/// first of equals. Upper and lower case count as half an edit apart, so that a slip in the
/// case beats a different word.
pub fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    known.into_iter().min_by_key(|candidate| distance(word, candidate))
}

/// The nearest word, if it is so near that it was probably meant.
pub fn likely<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    nearest(word, known).filter(|near| distance(word, near) <= word.len().max(near.len()) * 2 / 3)
}

/// Optimal string alignment distance in half edits: insert, delete, replace, swap neighbours.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=to.len()).map(|n| n * 2).collect();
    for (i, &a) in from.iter().enumerate() {
        let mut row = vec![(i + 1) * 2];
        for (j, &b) in to.iter().enumerate() {
            let replace = match () {
                () if a == b => 0,
                () if a.eq_ignore_ascii_case(&b) => 1,
                () => 2,
            };
            let mut best = (last[j] + replace).min(last[j + 1] + 2).min(row[j] + 2);
            if i > 0 && j > 0 && a == to[j - 1] && from[i - 1] == b {
                best = best.min(before_last[j - 1] + 2);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_half_edits() {
        let check = |from, to, expected| assert_eq!(distance(from, to), expected, "{from} → {to}");
        check("", "", 0);
        check("", "ab", 4);
        check("ab", "", 4);
        check("abc", "abc", 0);
        check("abc", "abC", 1);
        check("abc", "acb", 2);
        check("kitten", "sitting", 6);
    }

    #[test]
    fn nearest_is_the_first_of_the_closest() {
        let known = ["max-pods", "pods-per-core", "node-ip"];
        let check = |word, expected| assert_eq!(nearest(word, known), Some(expected), "{word}");
        check("maxpods", "max-pods");
        check("max_pod", "max-pods");
        check("pod-per-core", "pods-per-core");
        check("nodeip", "node-ip");
        assert_eq!(nearest("x", []), None);
        assert_eq!(likely("maxpods", known), Some("max-pods"));
        assert_eq!(likely("foo", known), None);
    }
}
