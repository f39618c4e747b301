//! The bytes.

/// The longest request that is looked at: names and options of honest clients are far shorter.
const LONGEST: usize = 512;

/// What a client says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet<'a> {
    /// It wants a file.
    Read {
        /// The name, as it came.
        file: &'a str,
        /// Whether as a text, with line ends as on a teletype (mode `netascii`), and not as it is (mode `octet`).
        as_text: bool,
        /// What it wishes of the transfer.
        wishes: Wishes,
    },
    /// It has everything up to this block.
    Ack(u16),
    /// It gives up.
    Error,
}

/// Options of a request that we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wishes {
    /// Bytes of a block (RFC 2348).
    pub block: Option<u16>,
    /// Seconds until a block is sent again (RFC 2349).
    pub timeout: Option<u8>,
    /// Whether it wants to know the file's size (RFC 2349).
    pub size: bool,
    /// Blocks before it answers (RFC 7440).
    pub window: Option<u16>,
}

/// Why a packet is not served; the number and text go back to its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// Not TFTP, or out of place: no answer.
    Nonsense,
    /// A write request.
    Write,
    /// A mode that we do not know.
    Mode,
    /// Too long to be sent as a text.
    TooLong,
    /// There is no such file for clients.
    NotFound,
    /// The folder cannot be opened.
    NoFolder,
    /// Too many transfers.
    Busy,
}

impl Refused {
    /// The packet that says so, if it is to be said.
    #[must_use]
    pub fn reply(self) -> Option<Vec<u8>> {
        match self {
            Self::Nonsense => None,
            Self::Write => Some(error(2, "this server is read-only")),
            Self::Mode => Some(error(0, "only modes octet and netascii are served")),
            Self::TooLong => Some(error(0, "too long for mode netascii: use octet")),
            Self::NotFound => Some(error(1, "no such file")),
            Self::NoFolder => Some(error(0, "the server's folder cannot be opened")),
            Self::Busy => Some(error(0, "too many transfers: try again")),
        }
    }
}

impl<'a> Packet<'a> {
    /// Reads a packet.
    ///
    /// # Errors
    /// Why it is not served.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Refused> {
        let (code, rest) = bytes.split_first_chunk::<2>().ok_or(Refused::Nonsense)?;
        match u16::from_be_bytes(*code) {
            1 => read(rest),
            2 => Err(Refused::Write),
            4 => {
                let (block, _) = rest.split_first_chunk::<2>().ok_or(Refused::Nonsense)?;
                Ok(Self::Ack(u16::from_be_bytes(*block)))
            }
            5 => Ok(Self::Error),
            _ => Err(Refused::Nonsense),
        }
    }
}

fn read(rest: &[u8]) -> Result<Packet<'_>, Refused> {
    if rest.len() > LONGEST || rest.last() != Some(&0) {
        return Err(Refused::Nonsense);
    }
    let mut words = rest[..rest.len() - 1].split(|b| *b == 0);
    let mut word = || std::str::from_utf8(words.next()?).ok();
    let file = word().filter(|f| !f.is_empty()).ok_or(Refused::Nonsense)?;
    let mode = word().ok_or(Refused::Nonsense)?;
    let as_text = match mode.to_ascii_lowercase().as_str() {
        "octet" => false,
        "netascii" => true,
        _ => return Err(Refused::Mode),
    };
    let mut wishes = Wishes::default();
    while let (Some(name), Some(value)) = (word(), word()) {
        match name.to_ascii_lowercase().as_str() {
            "blksize" => wishes.block = value.parse().ok().filter(|n| (8..=65464).contains(n)),
            "timeout" => wishes.timeout = value.parse().ok().filter(|n| *n > 0),
            "tsize" => wishes.size = true,
            "windowsize" => wishes.window = value.parse().ok().filter(|n| *n > 0),
            // RFC 2347: what is not known is left out of the answer.
            _ => {}
        }
    }
    Ok(Packet::Read {
        file,
        as_text,
        wishes,
    })
}

/// A file as mode `netascii` has it (RFC 1350 section 1, RFC 764): a line ends with CR LF, and a CR that ends none is
/// followed by NUL.
#[must_use]
pub fn as_text(file: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(file.len() + file.len() / 16);
    for byte in file {
        match byte {
            b'\n' => out.extend_from_slice(b"\r\n"),
            b'\r' => out.extend_from_slice(b"\r\0"),
            _ => out.push(*byte),
        }
    }
    out
}

/// A block of data.
#[must_use]
pub fn data(block: u16, bytes: &[u8]) -> Vec<u8> {
    let [high, low] = block.to_be_bytes();
    [&[0, 3, high, low], bytes].concat()
}

/// A refusal.
#[must_use]
pub fn error(code: u8, text: &str) -> Vec<u8> {
    [&[0, 5, 0, code], text.as_bytes(), &[0]].concat()
}

/// Options that are granted.
pub(super) fn granted(options: &[(&str, u64)]) -> Vec<u8> {
    let mut out = vec![0, 6];
    for (name, value) in options {
        out.extend_from_slice(name.as_bytes());
        out.push(0);
        out.extend_from_slice(value.to_string().as_bytes());
        out.push(0);
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_clients_say() {
        let asked = b"\0\x01a/b.efi\0OCTET\0tsize\x000\0blksize\x001468\0windowsize\x004\0x\0y\0";
        let wishes = Wishes {
            block: Some(1468),
            timeout: None,
            size: true,
            window: Some(4),
        };
        let file = "a/b.efi";
        let read = |file, as_text, wishes| {
            Ok(Packet::Read {
                file,
                as_text,
                wishes,
            })
        };
        assert_eq!(Packet::parse(asked), read(file, false, wishes));
        assert_eq!(Packet::parse(b"\0\x04\x01\x02"), Ok(Packet::Ack(258)));
        assert_eq!(Packet::parse(b"\0\x02a\0octet\0"), Err(Refused::Write));
        let none = Wishes::default();
        let text = b"\0\x01a\0NetASCII\0";
        assert_eq!(Packet::parse(text), read("a", true, none));
        assert_eq!(Packet::parse(b"\0\x01a\0mail\0"), Err(Refused::Mode));
        assert_eq!(as_text(b"a\nb\r\n\rc"), b"a\r\nb\r\0\r\n\r\0c");
        for nonsense in [
            &b""[..],
            b"\0",
            b"\0\x01",
            b"\0\x01a\0octet",
            b"\0\x01\0octet\0",
            b"\0\x07a",
        ] {
            assert_eq!(
                Packet::parse(nonsense),
                Err(Refused::Nonsense),
                "{nonsense:?}"
            );
        }
        let bad = b"\0\x01a\0octet\0blksize\x007\0timeout\x000\0windowsize\0many\0";
        assert_eq!(Packet::parse(bad), read("a", false, none));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(head in 0u8..8, rest in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Packet::parse(&[&[0, head], rest.as_slice()].concat());
        }
    }
}
