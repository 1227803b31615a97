//! Which of two states of one object is the older one.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Whether `new` is an older version than `known`. An answer to a write and the watch tell
/// of the same object without an order between them. Versions that are no numbers cannot be
/// compared; then the newcomer is believed.
pub fn is_older(new: &ObjectMeta, known: &ObjectMeta) -> bool {
    let version = |metadata: &ObjectMeta| metadata.resource_version.as_ref()?.parse::<u64>().ok();
    new.uid == known.uid && matches!((version(new), version(known)), (Some(new), Some(known)) if new < known)
}
