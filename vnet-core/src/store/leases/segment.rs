//! One file of the log: a salt, rows, and room for more of them that is on disk already.
//!
//! Its room is written with zeros before it is used: a row that is put there changes nothing but the row's own block,
//! so that one `pwrite` and one `fdatasync` are the whole commit, and a disk that fills up stops no lease.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::lease::row::{self, HEAD, Row, Salt};
use crate::store::StoreError;

/// How a file begins; the salt follows.
const MAGIC: [u8; 8] = *b"vnetlog1";
/// What is before the rows.
const START: u64 = 16;
/// The name of a file that is being made.
const UNFINISHED: &str = "unfinished";
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

#[derive(Debug)]
pub(super) struct Segment {
    path: PathBuf,
    file: File,
    salt: Salt,
    size: u64,
    /// Where the next row goes.
    end: u64,
}

/// A row's bytes, and where the next one is.
pub(super) struct Found {
    pub(super) bytes: Vec<u8>,
    pub(super) after: u64,
}

impl Segment {
    /// A file with this much room for rows. Half of one is never there under its name.
    pub(super) fn make(folder: &Path, name: u32, room: u64) -> Result<Self, StoreError> {
        let unfinished = folder.join(UNFINISHED);
        let path = folder.join(name.to_string());
        Self::fill(&unfinished, room + START)
            .and_then(|(file, salt)| {
                fs::rename(&unfinished, &path)?;
                sync_folder(folder)?;
                Ok(Self {
                    path: path.clone(),
                    file,
                    salt,
                    size: room + START,
                    end: START,
                })
            })
            .map_err(|error| {
                // What is left of it takes room that is missed.
                let _ = fs::remove_file(&unfinished);
                StoreError::of(&path, error)
            })
    }

    fn fill(path: &Path, size: u64) -> io::Result<(File, Salt)> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        // Says at once if there is no room, and keeps it in one piece. Some filesystems cannot.
        match fallocate(&file, FallocateFlags::empty(), 0, size) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
        let mut salt = Salt::default();
        getrandom(&mut salt, GetRandomFlags::empty())?;
        file.write_all(&MAGIC)?;
        file.write_all(&salt)?;
        let mut left = size - START;
        while left > 0 {
            let some = left.min(ZEROS.len() as u64);
            file.write_all(&ZEROS[..usize::try_from(some).unwrap_or(ZEROS.len())])?;
            left -= some;
        }
        file.sync_all()?;
        Ok((file, salt))
    }

    /// Opens a file that is there, with all that is in it. Its rows are to be looked for.
    pub(super) fn open(path: PathBuf) -> Result<(Self, Vec<u8>), StoreError> {
        let read = || {
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            Ok((file, fs::read(&path)?))
        };
        let (file, bytes) = read().map_err(|error| StoreError::of(&path, error))?;
        let salt = bytes
            .strip_prefix(&MAGIC)
            .and_then(|rest| rest.first_chunk())
            .copied();
        let Some(salt) = salt else {
            let why = "it does not begin as a file of leases does".to_owned();
            return Err(StoreError::Corrupt { path, why });
        };
        let segment = Self {
            path,
            file,
            salt,
            size: bytes.len() as u64,
            end: START,
        };
        Ok((segment, bytes))
    }

    /// What a file that is being made is called, if it was left behind.
    pub(super) fn forget_unfinished(folder: &Path) {
        // It is there after a crash only.
        let _ = fs::remove_file(folder.join(UNFINISHED));
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) const fn salt(&self) -> Salt {
        self.salt
    }

    /// Finds the rows of what was read, each with its place, and ends after the last of them: the first that is
    /// not whole or does not follow the one before it (a file is used again, and old rows are behind the new ones).
    pub(super) fn rows<'a>(&mut self, bytes: &'a [u8]) -> Vec<(u64, Row<'a>)> {
        let mut rows: Vec<(u64, Row<'a>)> = Vec::new();
        self.end = START;
        while let Some((row, len)) = self.row_at(bytes, self.end) {
            let before = rows.last().map(|(_, row)| row.number);
            if before.is_some_and(|before| before.checked_add(1) != Some(row.number)) {
                break;
            }
            rows.push((self.end, row));
            self.end += len as u64;
        }
        rows
    }

    fn row_at<'a>(&self, bytes: &'a [u8], at: u64) -> Option<(Row<'a>, usize)> {
        Row::read(self.salt, bytes.get(usize::try_from(at).ok()?..)?)
    }

    /// The highest number of a whole row anywhere behind the end: more than the last one's is a row that was lost by
    /// damage, and not by a commit that never ended.
    pub(super) fn highest_behind(&self, bytes: &[u8]) -> Option<u64> {
        let from = usize::try_from(self.end).ok()?;
        let marks = bytes.get(from..)?.windows(row::MARK.len());
        marks
            .enumerate()
            .filter(|(_, window)| *window == row::MARK)
            .filter_map(|(at, _)| self.row_at(bytes, self.end + at as u64))
            .map(|(row, _)| row.number)
            .max()
    }

    /// Whether a row of that length fits behind the others.
    pub(super) const fn has_room(&self, len: usize) -> bool {
        self.end + len as u64 <= self.size
    }

    /// Whether it is more than half full.
    pub(super) const fn is_half_full(&self) -> bool {
        self.end > self.size / 2
    }

    /// Puts a row behind the others. It is on disk when this returns, or has never been.
    pub(super) fn append(&mut self, row: &[u8]) -> Result<(), StoreError> {
        let written = self.file.write_all_at(row, self.end);
        written
            .and_then(|()| self.file.sync_data())
            .map_err(|error| StoreError::of(&self.path, error))?;
        self.end += row.len() as u64;
        Ok(())
    }

    /// Where its first row is.
    pub(super) const fn start() -> u64 {
        START
    }

    /// The row at a place, `None` behind the last.
    pub(super) fn read(&self, at: u64) -> Result<Option<Found>, StoreError> {
        if at >= self.end {
            return Ok(None);
        }
        let read = || {
            let mut head = [0; HEAD];
            self.file.read_exact_at(&mut head, at)?;
            let len = Row::length(&head);
            if len as u64 > self.end - at {
                return Err(ErrorKind::InvalidData.into());
            }
            let mut bytes = vec![0; len];
            self.file.read_exact_at(&mut bytes, at)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|error| StoreError::of(&self.path, error))?;
        let after = at + bytes.len() as u64;
        Ok(Some(Found { bytes, after }))
    }

    /// Takes the file for new rows: nothing in it counts any more.
    pub(super) const fn clear(&mut self) {
        self.end = START;
    }

    /// Takes the file away.
    pub(super) fn remove(self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a file of leases that is not needed stays");
        }
    }
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}
