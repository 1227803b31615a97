//! What a reader asks for: the query of `/containerLogs`, read as upstream reads it.

use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};

/// What a reader gets to see of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub follow: bool,
    /// The instance before this one.
    pub previous: bool,
    pub timestamps: bool,
    /// Nothing that was said before.
    pub since: Option<Timestamp>,
    /// So many lines from the end.
    pub tail_lines: Option<u64>,
    /// So many bytes of output.
    pub limit_bytes: Option<u64>,
    pub streams: Streams,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Streams {
    #[default]
    All,
    Stdout,
    Stderr,
}

/// Why a query is refused; the texts are upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadOptions {
    #[error(r#"{{"message": "Unable to decode query."}}"#)]
    Undecodable,
    #[error(r#"{{"message": "Invalid request."}}"#)]
    Invalid,
    #[error(
        "unable to return the given log stream: {0:?}. Please enable PodLogsQuerySplitStreams feature gate in kubelet"
    )]
    SplitStreamsOff(String),
}

impl BadOptions {
    /// The HTTP status that tells of it.
    pub fn status(&self) -> u16 {
        match self {
            BadOptions::Invalid => 422,
            BadOptions::Undecodable | BadOptions::SplitStreamsOff(_) => 400,
        }
    }
}

impl LogOptions {
    /// Reads a query whose pairs are decoded already. `split_streams` is the feature gate
    /// `PodLogsQuerySplitStreams`. What is not known is ignored.
    pub fn parse(query: &[(String, String)], now: Timestamp, split_streams: bool) -> Result<LogOptions, BadOptions> {
        let query = Query(query);
        let tail_lines = match query.first("tail").filter(|tail| !tail.is_empty()) {
            Some("all") => None,
            Some(tail) => Some(number(tail)?),
            None => query.number("tailLines")?,
        };
        let limit_bytes = query.number("limitBytes")?;
        let since_seconds = query.number("sinceSeconds")?;
        let since_time = query.first("sinceTime").map(time).transpose()?;
        let stream = query.first("stream");

        if tail_lines.is_some_and(|lines| lines < 0)
            || limit_bytes.is_some_and(|bytes| bytes < 1)
            || since_seconds.is_some_and(|seconds| seconds < 1)
            || (since_seconds.is_some() && since_time.is_some())
        {
            return Err(BadOptions::Invalid);
        }
        let streams = match stream {
            None | Some("All") => Streams::All,
            // Lines of one stream cannot be counted from the end without reading all others.
            Some("Stdout" | "Stderr") if tail_lines.is_some() => return Err(BadOptions::Invalid),
            Some(stream @ ("Stdout" | "Stderr")) if !split_streams => {
                return Err(BadOptions::SplitStreamsOff(stream.to_owned()));
            }
            Some("Stdout") => Streams::Stdout,
            Some("Stderr") => Streams::Stderr,
            Some(_) => return Err(BadOptions::Invalid),
        };
        let ago = |seconds| now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN);
        Ok(LogOptions {
            follow: query.flag("follow"),
            previous: query.flag("previous"),
            timestamps: query.flag("timestamps"),
            since: since_seconds.map(ago).or(since_time.flatten()),
            tail_lines: tail_lines.map(i64::unsigned_abs),
            limit_bytes: limit_bytes.map(i64::unsigned_abs),
            streams,
        })
    }
}

struct Query<'a>(&'a [(String, String)]);

impl<'a> Query<'a> {
    /// Of what is said twice, the first counts.
    fn first(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// `?follow` and `?follow=anything` are true, too.
    fn flag(&self, name: &str) -> bool {
        self.first(name).is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
    }

    fn number(&self, name: &str) -> Result<Option<i64>, BadOptions> {
        self.first(name).map(number).transpose()
    }
}

fn number(text: &str) -> Result<i64, BadOptions> {
    i64::from_str(text).map_err(|_| BadOptions::Undecodable)
}

/// Old clients say `null` or nothing where they mean no time; it is a time given nevertheless.
fn time(text: &str) -> Result<Option<Timestamp>, BadOptions> {
    match text {
        "" | "null" => Ok(None),
        text => text.parse().map(Some).map_err(|_| BadOptions::Undecodable),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<LogOptions, BadOptions> {
        parse_with(query, true)
    }

    fn parse_with(query: &str, split_streams: bool) -> Result<LogOptions, BadOptions> {
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key.to_owned(), value.to_owned())
        });
        let now = "2026-01-01T12:00:00Z".parse().expect("a literal time");
        LogOptions::parse(&pairs.collect::<Vec<_>>(), now, split_streams)
    }

    fn time(text: &str) -> Option<Timestamp> {
        Some(text.parse().expect("a literal time"))
    }

    #[test]
    fn nothing_asked_for_is_everything() {
        assert_eq!(parse(""), Ok(LogOptions::default()));
        assert_eq!(parse("container=main&insecureSkipTLSVerifyBackend=true&pretty=1"), Ok(LogOptions::default()));
    }

    #[test]
    fn every_option_is_understood() {
        let all = "follow=true&previous=1&timestamps&sinceSeconds=60&tailLines=5&limitBytes=1000&stream=All";
        let expected = LogOptions {
            follow: true,
            previous: true,
            timestamps: true,
            since: time("2026-01-01T11:59:00Z"),
            tail_lines: Some(5),
            limit_bytes: Some(1000),
            streams: Streams::All,
        };
        assert_eq!(parse(all), Ok(expected));
        let since = parse("sinceTime=2026-01-01T13:00:00%2B01:00".replace("%2B", "+").as_str());
        assert_eq!(since.map(|options| options.since), Ok(time("2026-01-01T12:00:00Z")));
        for (stream, streams) in [("Stdout", Streams::Stdout), ("Stderr", Streams::Stderr)] {
            assert_eq!(parse(&format!("stream={stream}")).map(|options| options.streams), Ok(streams));
        }
    }

    #[test]
    fn flags_are_false_by_two_words_only() {
        for (query, follow) in [("follow=0", false), ("follow=False", false), ("follow=no", true), ("follow=", true)] {
            assert_eq!(parse(query).map(|options| options.follow), Ok(follow), "{query}");
        }
    }

    #[test]
    fn the_old_name_of_the_tail_wins() {
        let tail = |query: &str| parse(query).map(|options| options.tail_lines);
        assert_eq!(tail("tail=3"), Ok(Some(3)));
        assert_eq!(tail("tail=3&tailLines=5"), Ok(Some(3)));
        assert_eq!(tail("tail=all&tailLines=5"), Ok(None));
        assert_eq!(tail("tail=&tailLines=5"), Ok(Some(5)));
        assert_eq!(tail("tailLines=0"), Ok(Some(0)));
        assert_eq!(tail("tail=x"), Err(BadOptions::Undecodable));
    }

    #[test]
    fn what_is_no_number_cannot_be_decoded_and_what_is_out_of_range_is_invalid() {
        for query in
            ["tailLines=x", "tailLines=", "limitBytes=1k", "sinceSeconds=9223372036854775808", "sinceTime=noon"]
        {
            assert_eq!(parse(query), Err(BadOptions::Undecodable), "{query}");
        }
        for query in [
            "tailLines=-1",
            "limitBytes=0",
            "sinceSeconds=0",
            "sinceSeconds=5&sinceTime=2026-01-01T12:00:00Z",
            "sinceSeconds=5&sinceTime=",
            "stream=stdout",
            "stream=",
            "stream=Stdout&tailLines=5",
        ] {
            assert_eq!(parse(query), Err(BadOptions::Invalid), "{query}");
        }
        assert_eq!((BadOptions::Undecodable.status(), BadOptions::Invalid.status()), (400, 422));
        assert_eq!(BadOptions::Invalid.to_string(), r#"{"message": "Invalid request."}"#);
    }

    #[test]
    fn a_time_before_all_times_is_the_first_there_is() {
        let since = |query| parse(query).map(|options| options.since);
        assert_eq!(since("sinceSeconds=9223372036854775807"), Ok(Some(Timestamp::MIN)));
        assert_eq!(since("sinceTime=null"), Ok(None));
    }

    #[test]
    fn one_stream_alone_needs_its_gate() {
        let refused = parse_with("stream=Stderr", false).expect_err("the gate is off");
        assert_eq!(refused.status(), 400);
        assert!(refused.to_string().starts_with(r#"unable to return the given log stream: "Stderr". Please"#));
        assert_eq!(parse_with("stream=All", false), Ok(LogOptions::default()));
        assert_eq!(parse_with("stream=Neither", false), Err(BadOptions::Invalid));
    }
}
