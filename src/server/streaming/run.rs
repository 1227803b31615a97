//! run: a command whose output is the answer.

use std::sync::Arc;
use std::time::Duration;

use http::{Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;

use super::request::{Query, running};
use super::{RUNS_MAX, Refusal, Streaming};
use crate::cri::Executed;
use crate::pleg::PodRuntime;
use crate::server::body::{Body, keeping, text};

/// As long as upstream's server lets an answer take. A client that leaves ends its command's
/// call before.
const RUN_LIMIT: Duration = Duration::from_secs(4 * 60 * 60);
/// Upstream takes no larger answer from a runtime.
const OUTPUT_BYTES_MAX: usize = 16 << 20;
/// What of its output is told of a command that failed.
const TOLD_BYTES_MAX: usize = 10 << 10;

impl Streaming {
    /// The command is split at single blanks; two of them hold an empty word between them.
    pub(super) async fn run(
        &self,
        container: &str,
        query: &Query,
        held: &PodRuntime,
    ) -> Result<Response<Body>, Refusal> {
        let command = query.first("cmd").filter(|command| !command.is_empty()).ok_or(Refusal::NoCommand)?;
        let permit = Arc::clone(&self.runs).try_acquire_owned();
        let permit = permit.map_err(|_| Refusal::TooManyRuns { max: RUNS_MAX })?;
        let words: Vec<String> = command.split(' ').map(str::to_owned).collect();
        let executed = self.runtime.exec(&running(held, container)?.id, &words, Some(RUN_LIMIT)).await?;
        // Until its output is sent, which is in memory so long.
        Ok(answer(command, executed)?.map(|output| keeping(output, permit)))
    }
}

/// Plain text whatever it is: upstream calls it JSON.
fn answer(command: &str, executed: Executed) -> Result<Response<Body>, Refusal> {
    let command = || command.chars().take(TOLD_BYTES_MAX).collect::<String>();
    match executed {
        Executed::TimedOut => Err(Refusal::TimedOut { command: command(), after: RUN_LIMIT }),
        Executed::Exited { output, .. } if output.len() > OUTPUT_BYTES_MAX => {
            Err(Refusal::TooMuchOutput { command: command(), bytes: output.len(), max: OUTPUT_BYTES_MAX })
        }
        Executed::Exited { code: 0, output } => {
            let body = Full::new(Bytes::from(output)).map_err(|never| match never {}).boxed_unsync();
            Ok(text(StatusCode::OK, "").map(|_| body))
        }
        Executed::Exited { code, output } => {
            let told = &output[..output.len().min(TOLD_BYTES_MAX)];
            let output = String::from_utf8_lossy(told).into_owned();
            Err(Refusal::Failed { command: command(), code, output })
        }
    }
}
