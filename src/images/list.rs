//! The images of this node, as its status shows them.

use k8s_openapi::api::core::v1::ContainerImage;

use crate::cri::Image;

/// More names than this of one image would crowd out others from the node's status.
const NAMES_MAX: usize = 5;

/// Largest first, at most `images_max` (all, if negative), digests before tags.
pub fn node_images(mut images: Vec<Image>, images_max: i32) -> Vec<ContainerImage> {
    images.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.id.cmp(&b.id)));
    images.truncate(usize::try_from(images_max).unwrap_or(usize::MAX));
    images
        .into_iter()
        .map(|image| ContainerImage {
            names: Some(image.repo_digests.into_iter().chain(image.repo_tags).take(NAMES_MAX).collect()),
            size_bytes: Some(i64::try_from(image.size_bytes).unwrap_or(i64::MAX)),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(id: &str, size_bytes: u64, digests: usize, tags: usize) -> Image {
        Image {
            id: id.into(),
            size_bytes,
            repo_digests: (0..digests).map(|n| format!("{id}@{n}")).collect(),
            repo_tags: (0..tags).map(|n| format!("{id}:{n}")).collect(),
            ..Image::default()
        }
    }

    fn check(images_max: i32, expected: &[(&[&str], i64)]) {
        let images = vec![image("b", 5, 1, 1), image("a", 5, 0, 1), image("big", 9, 3, 3), image("c", 1, 0, 0)];
        let listed = node_images(images, images_max);
        let listed: Vec<_> =
            listed.into_iter().map(|image| (image.names.unwrap_or_default(), image.size_bytes.unwrap_or(0))).collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(names, size)| (names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), *size))
            .collect();
        assert_eq!(listed, expected);
    }

    #[test]
    fn largest_first_and_no_more_than_asked_for() {
        let big: (&[&str], i64) = (&["big@0", "big@1", "big@2", "big:0", "big:1"], 9);
        check(2, &[big, (&["a:0"], 5)]);
        check(-1, &[big, (&["a:0"], 5), (&["b@0", "b:0"], 5), (&[], 1)]);
        check(0, &[]);
    }
}
