//! What the table of fields says of each: its place, kind, default, rule and flag.

/// One field of the configuration.
pub struct Field {
    /// The keys from the root of the document, with dots between them.
    pub path: &'static str,
    pub kind: Kind,
    pub default: Preset,
    /// Whether a zero in a file is a value of its own. Upstream cannot tell a zero from an
    /// absent field unless it holds the field by pointer, and kubeadm writes such zeros.
    pub zero_counts: bool,
    pub rule: Rule,
    pub flag: Option<Flag>,
    pub status: Status,
    /// One line for the help page.
    pub about: &'static str,
}

/// What the document may hold at a field.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Kind {
    Bool,
    /// A whole number between the bounds of upstream's type.
    Integer {
        min: i64,
        max: i64,
    },
    Float,
    Text,
    /// Text that names a file; a relative one is meant from the directory of its document.
    Path,
    /// Go duration text, not negative.
    Duration,
    /// Go duration text of which the sign means something.
    SignedDuration,
    /// Go duration text or a number of nanoseconds.
    DurationOrNanos,
    /// A quantity, as text or as a number.
    Quantity,
    List(&'static Kind),
    Map(&'static Kind),
    /// A structure inside a list, with its fields.
    Struct(&'static [(&'static str, Kind)]),
}

/// What a field holds when nobody says anything.
pub enum Preset {
    /// Absent, which is a meaning of its own.
    Absent,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(&'static str),
    List(&'static [&'static str]),
    Map(&'static [(&'static str, &'static str)]),
    /// Computed from other fields, in `defaults.rs`.
    Derived,
}

/// What the effective value must satisfy by itself; rules between fields are in `validate.rs`.
pub enum Rule {
    Any,
    Within(i64, i64),
    /// Duration bounds, both inclusive, in Go notation.
    Lasts(&'static str, &'static str),
    OneOf(&'static [&'static str]),
    IpAddress,
    NonEmpty,
}

/// A command-line flag that sets a field.
pub struct Flag {
    pub name: &'static str,
    pub syntax: Syntax,
}

/// How a flag's value is written.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Syntax {
    /// One value of the field's kind.
    Scalar,
    /// `a,b`; repeated uses add up.
    CommaList,
    /// `key=value,…`; repeated uses add up.
    Pairs,
    /// `signal<value,…`; repeated uses add up.
    LessThan,
    /// One `key=value` per use, commas belong to the value.
    OnePair,
    /// `Gate=true,…`, merged into the gates of the files.
    Gates,
    /// `Name:value,…`; a name may come several times.
    Headers,
    /// `key=value:Effect,…`
    Taints,
    /// `0:memory=1Gi,hugepages-2Mi=512Mi;1:…`
    ReservedMemory,
    /// `pattern=N,…`
    VModule,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    Works,
    /// Accepted, and named in a warning when set away from its default.
    NotYet,
    /// Accepted and without effect, in upstream's 1.36 as well or as what it sets is done at once.
    NoEffect,
}

pub(super) const TEXT: Kind = Kind::Text;
pub(super) const INT32: Kind = Kind::Integer { min: i32::MIN as i64, max: i32::MAX as i64 };
pub(super) const INT64: Kind = Kind::Integer { min: i64::MIN, max: i64::MAX };
pub(super) const UINT32: Kind = Kind::Integer { min: 0, max: u32::MAX as i64 };
pub(super) const I32_MAX: i64 = i32::MAX as i64;

pub(super) const fn field(path: &'static str, kind: Kind, default: Preset) -> Field {
    let (zero_counts, rule, flag) = (false, Rule::Any, None);
    Field { path, kind, default, zero_counts, rule, flag, status: Status::NotYet, about: "" }
}

pub(super) const fn boolean(path: &'static str, default: bool) -> Field {
    // False is either the default or held by pointer, so it always counts.
    field(path, Kind::Bool, Preset::Bool(default)).zero_counts()
}

pub(super) const fn int32(path: &'static str, default: i64) -> Field {
    field(path, INT32, Preset::Integer(default))
}

pub(super) const fn int64(path: &'static str, default: i64) -> Field {
    field(path, INT64, Preset::Integer(default))
}

pub(super) const fn text(path: &'static str, default: &'static str) -> Field {
    field(path, Kind::Text, Preset::Text(default))
}

pub(super) const fn file(path: &'static str, default: &'static str) -> Field {
    field(path, Kind::Path, Preset::Text(default))
}

pub(super) const fn duration(path: &'static str, default: &'static str) -> Field {
    field(path, Kind::Duration, Preset::Text(default))
}

pub(super) const fn texts(path: &'static str) -> Field {
    field(path, Kind::List(&TEXT), Preset::List(&[]))
}

pub(super) const fn map(path: &'static str) -> Field {
    field(path, Kind::Map(&TEXT), Preset::Map(&[]))
}

impl Field {
    pub(super) const fn about(mut self, about: &'static str) -> Self {
        self.about = about;
        self
    }

    pub(super) const fn zero_counts(mut self) -> Self {
        self.zero_counts = true;
        self
    }

    /// Marks the field as acted upon.
    pub(super) const fn works(mut self) -> Self {
        self.status = Status::Works;
        self
    }

    pub(super) const fn no_effect(mut self) -> Self {
        self.status = Status::NoEffect;
        self
    }

    pub(super) const fn flag(self, name: &'static str) -> Self {
        let syntax = match self.kind {
            Kind::List(_) => Syntax::CommaList,
            Kind::Map(_) => Syntax::Pairs,
            _ => Syntax::Scalar,
        };
        self.flag_as(name, syntax)
    }

    pub(super) const fn flag_as(mut self, name: &'static str, syntax: Syntax) -> Self {
        self.flag = Some(Flag { name, syntax });
        self
    }

    pub(super) const fn rule(mut self, rule: Rule) -> Self {
        self.rule = rule;
        self
    }

    pub(super) const fn within(self, min: i64, max: i64) -> Self {
        self.rule(Rule::Within(min, max))
    }

    pub(super) const fn one_of(self, words: &'static [&'static str]) -> Self {
        self.rule(Rule::OneOf(words))
    }
}
