//! Decides what becomes of an event, so that repetition costs a counter and not a flood.
//!
//! Three steps with client-go's numbers (`EventCorrelator`): many different messages of one
//! kind about one object are combined; an event seen before raises that one's count; and
//! each object has a small allowance of writes, refilled slowly. Beyond client-go, repetitions
//! leave some of that for news. No clock and no I/O here.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Occurrence;
use crate::kube::limit::{Rate, TokenBucket};

/// Different messages of one kind after which they are combined.
const COMBINE_AFTER: usize = 10;
/// Without another message for this long, combining starts over.
const COMBINE_WITHIN: Duration = Duration::from_secs(600);
/// Writes that an object has at once, and how often it gets another one.
const ALLOWANCE: Rate = Rate { per_second: 1.0 / 300.0, burst: 25 };
/// How many of them repetitions leave for what was not told before: why a pod was killed must
/// not go under because something else failed again and again.
const KEPT_FOR_NEWS: u32 = 5;
/// Entries each memory holds; the one unused for longest makes room. client-go keeps 4096.
const REMEMBERED: usize = 2048;
/// The name upstream's events carry, which tools filter by.
const COMPONENT: &str = "kubelet";

/// What to do with an occurrence.
#[derive(Clone, PartialEq, Debug)]
pub enum Verdict {
    /// The object has used up its allowance.
    Drop,
    Create(Box<Event>),
    /// Raise the count of an earlier event. When that one has expired at the API server,
    /// `instead` is created.
    Patch {
        namespace: String,
        name: String,
        patch: Value,
        instead: Box<Event>,
    },
}

/// Remembers what was told lately.
pub struct Correlator {
    node_name: String,
    kinds: Memory<Similar>,
    seen: Memory<Seen>,
    allowances: Memory<TokenBucket>,
    /// The last suffix given out: two events of one nanosecond still need two names.
    last_suffix: i128,
}

/// The different messages of one kind about one object, as hashes.
struct Similar {
    messages: BTreeSet<u64>,
    last: Instant,
}

/// An event we have told before.
struct Seen {
    name: String,
    first: Timestamp,
    count: i32,
}

impl Correlator {
    pub fn new(node_name: &str) -> Self {
        Correlator {
            node_name: node_name.to_owned(),
            kinds: Memory::new(REMEMBERED),
            seen: Memory::new(REMEMBERED),
            allowances: Memory::new(REMEMBERED),
            last_suffix: 0,
        }
    }

    pub fn consider(&mut self, occurrence: &Occurrence, now: Instant) -> Verdict {
        let about = &occurrence.about;
        let object = (&about.kind, &about.namespace, &about.name, &about.uid, &about.api_version);
        let kind = hash(&(object, occurrence.kind, &occurrence.reason));

        let (identity, message) = if self.is_one_of_many(kind, &occurrence.message, now) {
            (kind, format!("(combined from similar events): {}", occurrence.message))
        } else {
            (hash(&(kind, &about.field_path, &occurrence.message)), occurrence.message.clone())
        };
        let verdict = self.count(identity, occurrence, message);

        // Looked at last, as client-go does: a dropped repetition still counts, so that the
        // next one let through shows the true number.
        let allowance = self.allowances.entry(hash(&object), || TokenBucket::new(ALLOWANCE, now));
        let rest = match &verdict {
            Verdict::Patch { .. } => KEPT_FOR_NEWS,
            _ => 0,
        };
        if allowance.try_take_leaving(now, rest) { verdict } else { Verdict::Drop }
    }

    fn is_one_of_many(&mut self, kind: u64, message: &str, now: Instant) -> bool {
        let similar = self.kinds.entry(kind, || Similar { messages: BTreeSet::new(), last: now });
        if now.duration_since(similar.last) > COMBINE_WITHIN {
            similar.messages.clear();
        }
        similar.last = now;
        similar.messages.insert(hash(&message));
        let many = similar.messages.len() >= COMBINE_AFTER;
        if many {
            similar.messages.pop_first();
        }
        many
    }

    fn count(&mut self, identity: u64, occurrence: &Occurrence, message: String) -> Verdict {
        let suffix = occurrence.at.as_nanosecond().max(self.last_suffix + 1);
        let fresh = || Seen { name: event_name(&occurrence.about, suffix), first: occurrence.at, count: 0 };
        let seen = self.seen.entry(identity, fresh);
        seen.count = seen.count.saturating_add(1);
        let repeated = seen.count > 1;
        if !repeated {
            self.last_suffix = suffix;
        }
        let event = Box::new(event(&self.node_name, occurrence, seen, message));
        if !repeated {
            return Verdict::Create(event);
        }
        Verdict::Patch {
            namespace: event.metadata.namespace.clone().unwrap_or_default(),
            name: seen.name.clone(),
            patch: json!({ "count": event.count, "lastTimestamp": event.last_timestamp, "message": event.message }),
            instead: event,
        }
    }
}

fn event_name(about: &ObjectReference, suffix: i128) -> String {
    format!("{}.{suffix:x}", about.name.as_deref().unwrap_or_default())
}

fn event(node_name: &str, occurrence: &Occurrence, seen: &Seen, message: String) -> Event {
    let namespace = occurrence.about.namespace.clone().unwrap_or_else(|| "default".into());
    Event {
        metadata: ObjectMeta { name: Some(seen.name.clone()), namespace: Some(namespace), ..ObjectMeta::default() },
        involved_object: occurrence.about.clone(),
        type_: Some(occurrence.kind.as_str().into()),
        reason: Some(occurrence.reason.clone()),
        message: Some(message),
        source: Some(EventSource { component: Some(COMPONENT.into()), host: Some(node_name.into()) }),
        reporting_component: Some(COMPONENT.into()),
        reporting_instance: Some(node_name.into()),
        first_timestamp: Some(Time(seen.first)),
        last_timestamp: Some(Time(occurrence.at)),
        count: Some(seen.count),
        ..Event::default()
    }
}

/// Keys are kept as 64-bit hashes: the texts would be most of the memory, and two that
/// collide among a few thousand would merely share a count.
fn hash(key: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// A map that forgets what was unused for longest once it is full.
struct Memory<V> {
    capacity: usize,
    used: u64,
    entries: BTreeMap<u64, (u64, V)>,
    by_use: BTreeMap<u64, u64>,
}

impl<V> Memory<V> {
    fn new(capacity: usize) -> Self {
        Memory { capacity, used: 0, entries: BTreeMap::new(), by_use: BTreeMap::new() }
    }

    fn entry(&mut self, key: u64, fresh: impl FnOnce() -> V) -> &mut V {
        self.used += 1;
        if !self.entries.contains_key(&key)
            && self.entries.len() >= self.capacity
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.entries.remove(&oldest);
        }
        let (used, value) = self.entries.entry(key).or_insert_with(|| (self.used, fresh()));
        self.by_use.remove(used);
        *used = self.used;
        self.by_use.insert(self.used, key);
        value
    }
}
