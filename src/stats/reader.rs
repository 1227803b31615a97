//! Reads small files of the kernel, thousands in a row, with one buffer.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// The kernel writes such files a page at a time. What comes in less than half a page was all:
/// asking again for the end would double the calls.
const HALF_A_PAGE: usize = 2048;
/// As long as a file may be that somebody else's processes make longer, such as a list of them.
const BYTES_MAX: usize = 1 << 20;

#[derive(Default)]
pub struct Reader {
    buffer: Vec<u8>,
    path: PathBuf,
}

impl Reader {
    /// What the file has; `None` where there is none, or no more: what a file is about may go at
    /// any time.
    pub fn read(&mut self, directory: &Path, file: &str) -> Option<&[u8]> {
        self.path.clear();
        self.path.push(directory);
        self.path.push(file);
        let length = self.fill().ok()?;
        Some(&self.buffer[..length])
    }

    fn fill(&mut self) -> io::Result<usize> {
        let mut file = File::open(&self.path)?;
        let mut length = 0;
        while length < BYTES_MAX {
            if self.buffer.len() < length + 2 * HALF_A_PAGE {
                self.buffer.resize(length + 4 * HALF_A_PAGE, 0);
            }
            let more = file.read(&mut self.buffer[length..])?;
            length += more;
            if more < HALF_A_PAGE {
                break;
            }
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_any_length_are_read_whole_and_missing_ones_are_none() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut reader = Reader::default();
        for length in [0, 1, 2047, 2048, 8192, 8193, 100_000] {
            let text: Vec<u8> = (0..length).map(|place| b'a' + (place % 26) as u8).collect();
            std::fs::write(directory.path().join("file"), &text).expect("it is writable");
            assert_eq!(reader.read(directory.path(), "file"), Some(&text[..]), "{length}");
        }
        assert_eq!(reader.read(directory.path(), "none"), None);
        assert_eq!(reader.read(&directory.path().join("gone"), "file"), None);
    }
}
