//! A node log query: what is asked for, and why it is refused. Pure.

use jiff::Timestamp;

const TAIL_LINES_MAX: i64 = 100_000;
const SERVICES_MAX: usize = 4;
const SERVICE_NAME_BYTES_MAX: usize = 256;

/// What is asked for in the query of `/logs/`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeQuery {
    pub what: What,
    pub options: Narrowing,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Services(Vec<String>),
    /// Below the directory of logs.
    File(String),
}

impl Default for What {
    fn default() -> Self {
        What::Services(Vec::new())
    }
}

/// Which lines of services are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Narrowing {
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    pub tail_lines: Option<i64>,
    /// 0 is this boot, -1 the one before.
    pub boot: Option<i64>,
    /// A regular expression, which journalctl knows to read.
    pub pattern: Option<String>,
}

/// Why a query is refused. The words name the parameter, in the form of the API's own errors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadQuery {
    /// It cannot be understood.
    #[error("{}", in_one(.0))]
    Undecodable(Vec<String>),
    /// It is understood, and cannot be answered.
    #[error("{}", in_one(.0))]
    Invalid(Vec<String>),
}

fn in_one(errors: &[String]) -> String {
    match errors {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

fn invalid(field: &str, value: impl std::fmt::Debug, why: &str) -> String {
    format!("{field}: Invalid value: {value:?}: {why}")
}

/// Reads a query whose pairs are decoded already; `None` if it asks for nothing.
pub fn parse(query: &[(String, String)]) -> Result<Option<NodeQuery>, BadQuery> {
    let mut errors = Vec::new();
    let first = |name: &str| {
        let found = query.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    };
    let asked: Vec<&str> = query.iter().filter(|(key, _)| key == "query").map(|(_, value)| value.as_str()).collect();
    let is_file = |name: &&str| name.contains(['/', '\\']);
    let files: Vec<&str> = asked.iter().copied().filter(is_file).collect();
    let services: Vec<String> =
        asked.iter().filter(|name| !is_file(name) && !name.trim().is_empty()).map(|name| (*name).to_owned()).collect();
    if !asked.is_empty() && files.is_empty() && services.is_empty() {
        errors.push(invalid("query", &asked, "query cannot be empty"));
    }
    let mut time = |name| {
        let time = first(name).map(|text| text.parse().map_err(|_| invalid(name, text, "invalid time format")));
        time.and_then(|time| time.map_err(|error| errors.push(error)).ok())
    };
    let (since, until) = (time("sinceTime"), time("untilTime"));
    let mut number = |name| {
        let number = first(name).map(|text| text.parse().map_err(|_| invalid(name, text, "invalid number")));
        number.and_then(|number| number.map_err(|error| errors.push(error)).ok())
    };
    let (boot, tail_lines) = (number("boot"), number("tailLines"));
    let options = Narrowing { since, until, tail_lines, boot, pattern: first("pattern").map(str::to_owned) };
    if !errors.is_empty() {
        return Err(BadQuery::Undecodable(errors));
    }
    if asked.is_empty() && options == Narrowing::default() {
        return Ok(None);
    }
    validate(&files, &services, &options)?;
    let what = files.first().map_or(What::Services(services), |file| What::File((*file).to_owned()));
    Ok(Some(NodeQuery { what, options }))
}

fn validate(files: &[&str], services: &[String], options: &Narrowing) -> Result<(), BadQuery> {
    let mut errors: Vec<String> = services.iter().filter_map(|name| bad_name(name)).collect();
    if services.len() > SERVICES_MAX {
        errors.push(format!("query: Too many: {}: must have at most {SERVICES_MAX} items", services.len()));
    }
    match (files, services.is_empty()) {
        ([], true) => errors.push("query: Required value: cannot be empty with options".to_owned()),
        ([_, ..], false) => errors.push(invalid("query", (files, services), "cannot specify a file and service")),
        ([_, _, ..], true) => errors.push(invalid("query", files, "cannot specify more than one file")),
        ([_], true) if *options != Narrowing::default() => {
            errors.push(invalid("query", files, "cannot specify file with options"));
        }
        _ => {}
    }
    if let (Some(since), Some(until)) = (options.since, options.until)
        && since > until
    {
        errors.push(invalid("untilTime", until.to_string(), "must be after `sinceTime`"));
    }
    if let Some(boot) = options.boot.filter(|boot| *boot > 0) {
        errors.push(invalid("boot", boot, "must be less than 1"));
    }
    if let Some(lines) = options.tail_lines.filter(|lines| !(0..=TAIL_LINES_MAX).contains(lines)) {
        errors.push(invalid("tailLines", lines, &format!("must be between 0 and {TAIL_LINES_MAX}, inclusive")));
    }
    if errors.is_empty() { Ok(()) } else { Err(BadQuery::Invalid(errors)) }
}

fn bad_name(service: &str) -> Option<String> {
    let is_safe = |sign: char| sign.is_ascii_alphanumeric() || "-_.:@".contains(sign);
    if service.len() > SERVICE_NAME_BYTES_MAX {
        return Some(invalid("query", service, &format!("must have at most {SERVICE_NAME_BYTES_MAX} bytes")));
    }
    (!service.chars().all(is_safe)).then(|| invalid("query", service, "input contains unsupported characters"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(query: &str) -> Result<Option<NodeQuery>, BadQuery> {
        let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (key.to_owned(), value.to_owned())
        });
        parse(&pairs.collect::<Vec<_>>())
    }

    #[test]
    fn nothing_asked_for_is_no_query() {
        assert_eq!(parsed(""), Ok(None));
        assert_eq!(parsed("other=1&tailLines="), Ok(None));
    }

    #[test]
    fn services_and_options_are_read() {
        let options = Narrowing {
            since: "2026-01-01T12:00:00Z".parse().ok(),
            until: "2026-01-01T12:00:00Z".parse().ok(),
            tail_lines: Some(0),
            boot: Some(-1),
            pattern: Some("a.*b".to_owned()),
        };
        let what = What::Services(vec!["kubelet".to_owned(), "getty@tty1.service".to_owned()]);
        let query = "query=kubelet&query=%20&query=getty@tty1.service&sinceTime=2026-01-01T12:00:00Z\
                     &untilTime=2026-01-01T13:00:00+01:00&tailLines=0&boot=-1&pattern=a.*b";
        assert_eq!(parsed(&query.replace("%20", " ")), Ok(Some(NodeQuery { what, options })));
        let what = What::File("foo/bar.log".to_owned());
        assert_eq!(parsed("query=foo/bar.log"), Ok(Some(NodeQuery { what, options: Narrowing::default() })));
    }

    #[test]
    fn what_cannot_be_understood_is_named() {
        for (query, words) in [
            ("query=", "query: Invalid value: [\"\"]: query cannot be empty"),
            ("query=a&sinceTime=noon", "sinceTime: Invalid value: \"noon\": invalid time format"),
            ("query=a&untilTime=noon", "untilTime: Invalid value: \"noon\": invalid time format"),
            ("query=a&boot=x", "boot: Invalid value: \"x\": invalid number"),
        ] {
            assert_eq!(parsed(query), Err(BadQuery::Undecodable(vec![words.to_owned()])), "{query}");
        }
        let both = parsed("query=a&boot=x&tailLines=y").expect_err("both are wrong").to_string();
        assert!(both.starts_with("[boot: ") && both.contains(", tailLines: "), "{both}");
    }

    #[test]
    fn what_cannot_be_answered_is_named() {
        let long = format!("query={}", "a".repeat(257));
        for (query, field) in [
            ("tailLines=5", "query: Required value"),
            ("query=a&query=b&query=c&query=d&query=e", "query: Too many: 5"),
            ("query=/a&query=b", "query: Invalid value"),
            ("query=/a&query=/b", "query: Invalid value"),
            ("query=/a&tailLines=5", "query: Invalid value"),
            ("query=a;b", "query: Invalid value"),
            (&long, "query: Invalid value"),
            ("query=a&sinceTime=2026-01-01T12:00:01Z&untilTime=2026-01-01T12:00:00Z", "untilTime: Invalid value"),
            ("query=a&boot=1", "boot: Invalid value"),
            ("query=a&tailLines=-1", "tailLines: Invalid value"),
            ("query=a&tailLines=100001", "tailLines: Invalid value"),
        ] {
            let refused = parsed(query).expect_err(query);
            assert!(matches!(&refused, BadQuery::Invalid(errors) if errors.len() == 1), "{query}: {refused:?}");
            assert!(refused.to_string().starts_with(field), "{query}: {refused}");
        }
        assert!(parsed("query=a&untilTime=2026-01-01T12:00:00Z").is_ok(), "upstream fails over this one");
    }
}
