//! A body that is compressed on its way.

use std::io::{self, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt;
use futures::stream;
use hyper::body::Bytes;

use super::files::Body;

/// The same, compressed piece by piece: who reads it sees each as it comes.
pub fn gzip(body: Body) -> Body {
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    stream::try_unfold(Some((body, encoder)), |state| async move {
        let Some((mut body, mut encoder)) = state else { return Ok::<_, io::Error>(None) };
        match body.next().await.transpose()? {
            Some(bytes) => {
                encoder.write_all(&bytes)?;
                encoder.flush()?;
                let compressed = Bytes::from(std::mem::take(encoder.get_mut()));
                Ok(Some((compressed, Some((body, encoder)))))
            }
            None => Ok(Some((Bytes::from(encoder.finish()?), None))),
        }
    })
    .boxed()
}
