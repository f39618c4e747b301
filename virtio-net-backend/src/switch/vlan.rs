//! VLAN tags. The switch forwards tagged frames as they are and learns addresses across all VLANs, as a kernel bridge
//! without VLAN filtering does; what it needs of a tag is to see past it. Not here: access ports, tag insertion.

use super::wire::be16;

/// Where a frame's payload begins, behind any tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Untagged {
    /// The first type field that is not a tag, or `None` if the frame ends inside its tags.
    pub ethertype: Option<u16>,
    /// The offset behind it.
    pub payload: usize,
    /// How many tags there were.
    pub tags: usize,
}

/// More tags than any network stacks, and few enough to bound the walk.
const MAX_TAGS: usize = 4;

/// 802.1Q, 802.1ad, and the numbers used before 802.1ad had one.
pub(super) fn is_tag(ethertype: u16) -> bool {
    matches!(ethertype, 0x8100 | 0x88a8 | 0x9100 | 0x9200 | 0x9300)
}

/// Looks past the tags of a frame.
pub(super) fn untag(frame: &[u8]) -> Untagged {
    let mut at = 12;
    for tags in 0..=MAX_TAGS {
        match be16(frame, at) {
            Some(ethertype) if is_tag(ethertype) => at += 4,
            ethertype => {
                return Untagged {
                    ethertype,
                    payload: at + 2,
                    tags,
                };
            }
        }
    }
    Untagged {
        ethertype: None,
        payload: at + 2,
        tags: MAX_TAGS + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(types: &[u16]) -> Vec<u8> {
        let mut frame = vec![0; 12];
        for (at, ethertype) in types.iter().enumerate() {
            frame.extend(ethertype.to_be_bytes());
            if at + 1 < types.len() {
                frame.extend([0, 5]);
            }
        }
        frame
    }

    #[test]
    fn tags_of_every_kind_are_looked_past() {
        assert_eq!(
            untag(&frame(&[0x800])),
            Untagged {
                ethertype: Some(0x800),
                payload: 14,
                tags: 0
            }
        );
        assert_eq!(
            untag(&frame(&[0x8100, 0x86dd])),
            Untagged {
                ethertype: Some(0x86dd),
                payload: 18,
                tags: 1
            }
        );
        assert_eq!(
            untag(&frame(&[0x88a8, 0x8100, 0x806])),
            Untagged {
                ethertype: Some(0x806),
                payload: 22,
                tags: 2
            }
        );
    }

    #[test]
    fn a_frame_of_nothing_but_tags_has_no_type() {
        assert_eq!(untag(&frame(&[0x8100; 40])).ethertype, None);
        assert_eq!(
            untag(&frame(&[0x8100])),
            Untagged {
                ethertype: None,
                payload: 18,
                tags: 1
            }
        );
    }
}
