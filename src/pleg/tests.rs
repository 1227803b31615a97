use super::*;
use crate::host::HostError;

#[test]
fn a_termination_file_that_cannot_be_read_says_so() {
    assert_eq!(last_words("/m", Ok(Some(b"bye".to_vec()))), "bye");
    assert_eq!(last_words("/m", Ok(None)), "", "it wrote none");
    let told = last_words("/m", Err(HostError::Refused("it is a directory".into())));
    assert_eq!(told, "Error on reading termination log /m: it is a directory");
}
