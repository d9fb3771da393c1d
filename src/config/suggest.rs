//! "Did you mean": the known word nearest to one that is not known.

/// The nearest of `known` to `word`, if it is near enough to be a slip of the fingers.
pub(crate) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase().replace('-', "_");
    let letters = word.chars().count();
    if letters > WORD_CHARS_MAX {
        return None;
    }
    // One slip in three letters, at least one: 'adress', 'clutser', 'hots'.
    let distance_max = (letters / 3).max(1);
    known
        .into_iter()
        .filter(|known| known.chars().count() <= WORD_CHARS_MAX)
        .map(|known| (distance(&word, &known.to_ascii_lowercase().replace('-', "_")), known))
        .filter(|(distance, known)| *distance <= distance_max || begins_alike(&word, known))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// A help text of the nearest word, or of all of them if none is near.
pub(crate) fn help(word: &str, known: &[&str], what: &str) -> Option<String> {
    match nearest(word, known.iter().copied()) {
        Some(near) => Some(format!("did you mean '{near}'?")),
        None if known.is_empty() => None,
        None if known.len() <= LISTED_MAX => Some(format!("{what}: {}", known.join(", "))),
        None => Some(format!("{what}: {}, ...", known[..LISTED_MAX].join(", "))),
    }
}

/// Words that a help lists when none is near.
const LISTED_MAX: usize = 12;

/// Longer words are no slips of the fingers, and would cost much to compare.
const WORD_CHARS_MAX: usize = 64;

fn begins_alike(word: &str, known: &str) -> bool {
    word.len() >= 4 && (known.starts_with(word) || word.starts_with(known) && known.len() >= 4)
}

/// Optimal string alignment: insertions, deletions, replacements, and swaps of neighbours.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=right.len()).collect();
    let mut last = None;
    for (row, letter) in left.chars().enumerate() {
        let mut line = vec![row + 1];
        for (column, other) in right.iter().enumerate() {
            let replaced = above[column] + usize::from(letter != *other);
            let mut best = replaced.min(above[column + 1] + 1).min(line[column] + 1);
            if column > 0 && last == Some(*other) && letter == right[column - 1] {
                best = best.min(before[column - 1] + 1);
            }
            line.push(best);
        }
        last = Some(letter);
        before = std::mem::replace(&mut above, line);
    }
    above[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 5] = ["address", "cluster", "clusters", "timeouts", "host"];

    #[test]
    fn slips_find_their_word() {
        for (slip, word) in [
            ("adress", "address"),
            ("clutser", "cluster"),
            ("time-outs", "timeouts"),
            ("Hosts", "host"),
            ("hsot", "host"),
            ("addr", "address"),
        ] {
            assert_eq!(nearest(slip, KNOWN), Some(word), "{slip}");
        }
    }

    #[test]
    fn other_words_find_nothing() {
        for word in ["", "x", "banana", "listen"] {
            assert_eq!(nearest(word, KNOWN), None, "{word}");
        }
    }

    #[test]
    fn distances() {
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", "abc"), 0);
        assert_eq!(distance("abc", "acb"), 1);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
