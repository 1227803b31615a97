//! What a caller wants to read, from its `Accept`.

/// How a page is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    Text,
    Structured { language: Language, version: Version },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Language {
    Json,
    Yaml,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Version {
    V1Alpha1,
    V1Beta1,
}

pub const GROUP: &str = "config.k8s.io";

impl Language {
    pub fn media_type(self) -> &'static str {
        match self {
            Language::Json => "application/json",
            Language::Yaml => "application/yaml",
        }
    }
}

impl Version {
    pub fn name(self) -> &'static str {
        match self {
            Version::V1Alpha1 => "v1alpha1",
            Version::V1Beta1 => "v1beta1",
        }
    }
}

/// The form that a caller likes best of those there are; `None` if it likes none of them. The
/// structured ones have to be asked for with group, version and kind, so that nobody comes to
/// depend on a default.
pub fn choose(accept: &str, kind: &str) -> Option<Form> {
    if accept.trim().is_empty() {
        return Some(Form::Text);
    }
    let mut clauses: Vec<Clause<'_>> = accept.split(',').filter_map(Clause::parse).collect();
    clauses.sort_by_key(|clause| (std::cmp::Reverse(clause.quality), clause.vagueness()));
    clauses.iter().find_map(|clause| clause.form(kind))
}

/// One of the alternatives.
struct Clause<'a> {
    main: &'a str,
    sub: &'a str,
    /// In thousandths.
    quality: u32,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let (main, sub) = parts.next()?.split_once('/')?;
        let mut clause = Clause { main, sub, quality: 1000, parameters: Vec::new() };
        for (key, value) in parts.filter_map(|part| part.split_once('=')) {
            match (key.trim(), value.trim().trim_matches('"')) {
                // What is no number means nothing, as upstream has it.
                ("q", quality) => clause.quality = quality.parse::<f32>().map_or(1000, |q| (q * 1000.0) as u32),
                pair => clause.parameters.push(pair),
            }
        }
        (clause.quality > 0).then_some(clause)
    }

    fn vagueness(&self) -> usize {
        [self.main, self.sub].iter().filter(|part| **part == "*").count()
    }

    fn form(&self, kind: &str) -> Option<Form> {
        let is =
            |main: &str, sub: &str| (self.main == main || self.main == "*") && (self.sub == sub || self.sub == "*");
        let of = |name: &str| self.parameters.iter().rfind(|(key, _)| *key == name).map(|(_, value)| *value);
        let transformed = (of("g"), of("v"), of("as"));
        if transformed == (None, None, None) {
            return is("text", "plain").then_some(Form::Text);
        }
        let version = match transformed {
            (Some(GROUP), Some("v1beta1"), Some(named)) if named == kind => Version::V1Beta1,
            (Some(GROUP), Some("v1alpha1"), Some(named)) if named == kind => Version::V1Alpha1,
            _ => return None,
        };
        let language = [Language::Json, Language::Yaml].into_iter().find(|language| {
            let (main, sub) = language.media_type().split_once('/').expect("both have a slash");
            is(main, sub)
        });
        language.map(|language| Form::Structured { language, version })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(accept: &str, expected: Option<Form>) {
        assert_eq!(choose(accept, "Flagz"), expected, "{accept:?}");
    }

    #[test]
    fn text_is_for_people_and_the_rest_is_asked_for_by_name() {
        let structured = |language, version| Some(Form::Structured { language, version });
        for text in ["", " ", "*/*", "text/plain", "text/*", "text/html, */*;q=0.1", "application/json, text/plain"] {
            check(text, Some(Form::Text));
        }
        for none in [
            "application/json",
            "application/*",
            "text/html",
            "text/plain;q=0",
            "nonsense",
            "application/json;g=config.k8s.io;v=v1;as=Flagz",
            "application/json;g=config.k8s.io;v=v1beta1;as=Statusz",
            "application/json;g=config.k8s.io;v=v1beta1",
            "application/cbor;g=config.k8s.io;v=v1beta1;as=Flagz",
            "text/plain;g=config.k8s.io;v=v1beta1;as=Flagz",
        ] {
            check(none, None);
        }
        let asked = "g=config.k8s.io;v=v1beta1;as=Flagz";
        check(&format!("application/json;{asked}"), structured(Language::Json, Version::V1Beta1));
        check(&format!("application/yaml; as=Flagz; {asked}"), structured(Language::Yaml, Version::V1Beta1));
        check(&format!("*/*;{asked}"), structured(Language::Json, Version::V1Beta1));
        let old = "application/json;g=config.k8s.io;v=v1alpha1;as=Flagz";
        check(old, structured(Language::Json, Version::V1Alpha1));
        // What is liked better comes first, and of what is liked alike the more exact.
        check(
            &format!("text/plain;q=0.5, application/yaml;{asked};q=0.9"),
            structured(Language::Yaml, Version::V1Beta1),
        );
        check(&format!("*/*, application/yaml;{asked}"), structured(Language::Yaml, Version::V1Beta1));
    }
}
