//! Finds the field that stands at a place in a YAML text, so that an error can name it.

use serde_saphyr::granit_parser::{Event, Parser};

/// An object or list that is open where the parser is.
enum Open {
    Object { key: Option<String> },
    List { index: usize },
}

/// The path of the innermost value that begins at or before this place. `None` outside the
/// document, and where the text ends being YAML.
pub(super) fn path_at(text: &str, line: u64, column: u64) -> Option<String> {
    let mut open: Vec<Open> = Vec::new();
    let mut found = None;
    for event in Parser::new_from_str(text) {
        // What cannot be parsed is an error of its own, at this place.
        let (event, span) = event.ok()?;
        let here = (span.start.line() as u64, span.start.col() as u64 + 1);
        if here > (line, column) {
            break;
        }
        match event {
            Event::MappingStart(..) => {
                found = Some(path(&open));
                open.push(Open::Object { key: None });
            }
            Event::SequenceStart(..) => {
                found = Some(path(&open));
                open.push(Open::List { index: 0 });
            }
            Event::MappingEnd | Event::SequenceEnd => {
                open.pop();
                value_ended(&mut open);
            }
            Event::Scalar(word, ..) => match open.last_mut() {
                Some(Open::Object { key: key @ None }) => *key = Some(word.into_owned()),
                _ => {
                    found = Some(path(&open));
                    value_ended(&mut open);
                }
            },
            Event::Alias(..) => value_ended(&mut open),
            _ => {}
        }
    }
    found.filter(|path| !path.is_empty())
}

fn value_ended(open: &mut [Open]) {
    match open.last_mut() {
        Some(Open::Object { key }) => *key = None,
        Some(Open::List { index }) => *index += 1,
        None => {}
    }
}

fn path(open: &[Open]) -> String {
    let mut path = String::new();
    for level in open {
        match level {
            Open::Object { key } => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key.as_deref().unwrap_or_default());
            }
            Open::List { index } => path.push_str(&format!("[{index}]")),
        }
    }
    path
}
