//! The stories, by theme. To add one: write an `async fn(Node) -> Result<()>` in the file of
//! its theme and name it in that file's `CASES`.

mod lifecycle;

use crate::harness::Case;

pub fn all() -> Vec<Case> {
    [lifecycle::CASES].concat()
}
