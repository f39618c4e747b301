//! Who else changes our tables, as the kernel tells it.
//!
//! nf_tables announces each transaction: its objects, then one message with the generation and the process behind it.
//! A transaction that touched our tables and was not made by us is told. The caller then
//! observes and calls `diff`; nothing is judged here.

use std::io;

use rtnetlink::sys::{
    AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER,
};
use rustix::net::sockopt;

use super::nft::Ours;
use super::socket::pieces;
use crate::firewall::Table;

/// `NFNLGRP_NFTABLES`
const GROUP: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES`
const SUBSYSTEM: u8 = 10;
/// `NFT_MSG_NEWGEN`: the end of a transaction.
const GENERATION: u8 = 15;
/// `NFTA_GEN_PROC_PID`
const PROCESS: u16 = 2;
/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE`, ...: the first attribute of every object.
const TABLE: u16 = 1;
/// netlink's header and nfnetlink's.
const HEADERS: usize = 16 + 4;
/// A transaction of 10,000 elements is some megabytes of messages.
const RECEIVE_BUFFER: usize = 8 << 20;

/// Somebody else touched our tables (or may have: notices were lost).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touched;

/// A subscription to the firewall's changes in the network namespace it was made in.
pub struct NftWatch {
    socket: TokioSocket,
    ours: Ours,
    transaction: Transaction,
}

/// The transaction that is being told.
#[derive(Debug, Default)]
struct Transaction {
    touches_us: bool,
}

impl NftWatch {
    /// Subscribes. Must be called on a tokio runtime with I/O.
    ///
    /// # Errors
    /// When the kernel has no nf_tables.
    pub fn new(ours: Ours) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
        let raw = socket.socket_mut();
        raw.bind(&SocketAddr::new(0, 0))?;
        raw.add_membership(GROUP)?;
        // As much as the host's limit lets us; a burst beyond it costs a look.
        if sockopt::set_socket_recv_buffer_size_force(&*raw, RECEIVE_BUFFER).is_err() {
            sockopt::set_socket_recv_buffer_size(&*raw, RECEIVE_BUFFER)?;
        }
        Ok(Self {
            socket,
            ours,
            transaction: Transaction::default(),
        })
    }

    /// The next change by somebody else. Safe to drop and call again.
    pub async fn next(&mut self) -> Touched {
        loop {
            match self.socket.recv_from_full().await {
                Ok((datagram, _)) => {
                    let ours = &self.ours;
                    let is_ours = |pid| ours.contains(pid);
                    if self.transaction.take(&datagram, is_ours) {
                        return Touched;
                    }
                }
                // The socket's buffer ran over: we do not know.
                Err(_) => return Touched,
            }
        }
    }
}

impl Transaction {
    /// Reads a datagram; whether it ends a transaction of somebody else's that touched our tables.
    fn take(&mut self, datagram: &[u8], is_ours: impl Fn(i32) -> bool) -> bool {
        let mut touched = false;
        for piece in pieces(datagram) {
            if piece.len() < HEADERS || piece[5] != SUBSYSTEM {
                continue;
            }
            if piece[4] != GENERATION {
                let table = attribute(&piece[HEADERS..], TABLE);
                self.touches_us |= table
                    .is_some_and(|name| name.strip_suffix(&[0]) == Some(Table::NAME.as_bytes()));
                continue;
            }
            let pid = attribute(&piece[HEADERS..], PROCESS)
                .and_then(|bytes| bytes.try_into().ok())
                .map(i32::from_be_bytes);
            touched |= self.touches_us && !pid.is_some_and(&is_ours);
            self.touches_us = false;
        }
        touched
    }
}

/// The value of a netlink attribute.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    while let [a, b, c, d, ..] = *bytes {
        let length = usize::from(u16::from_ne_bytes([a, b]));
        // The two topmost bits are flags.
        let kind = u16::from_ne_bytes([c, d]) & 0x3fff;
        let value = bytes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![0u8; 4];
        for (kind, value) in attributes {
            let length = u16::try_from(value.len() + 4).unwrap();
            body.extend(length.to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend_from_slice(value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let length = u32::try_from(16 + body.len()).unwrap();
        let mut all = length.to_ne_bytes().to_vec();
        all.extend([kind, SUBSYSTEM, 0, 0]);
        all.extend([0; 8]);
        all.extend(body);
        all
    }

    fn generation(pid: u32) -> Vec<u8> {
        message(
            GENERATION,
            &[(1, &1u32.to_be_bytes()), (PROCESS, &pid.to_be_bytes())],
        )
    }

    #[test]
    fn only_others_and_only_our_tables() {
        let ours = message(12, &[(TABLE, b"vnet\0"), (2, b"vnet_mac\0")]);
        let theirs = message(12, &[(TABLE, b"filter\0"), (2, b"x\0")]);
        let tell =
            |messages: &[Vec<u8>]| Transaction::default().take(&messages.concat(), |pid| pid == 7);
        assert!(tell(&[ours.clone(), generation(8)]));
        assert!(!tell(&[ours.clone(), generation(7)]));
        assert!(!tell(&[theirs.clone(), generation(8)]));
        assert!(tell(&[theirs, ours, generation(8)]));
        assert!(!tell(&[generation(8)]));
    }

    #[test]
    fn a_transaction_may_come_in_parts() {
        let mut transaction = Transaction::default();
        assert!(!transaction.take(&message(2, &[(TABLE, b"vnet\0")]), |_| false));
        assert!(transaction.take(&generation(8), |_| false));
        assert!(!transaction.take(&generation(8), |_| false));
    }

    #[test]
    fn broken_messages_are_no_messages() {
        for len in 0..40 {
            let mut bytes = message(2, &[(TABLE, b"vnet\0")]);
            bytes.truncate(len);
            Transaction::default().take(&bytes, |_| false);
        }
        assert_eq!(attribute(&[0, 0, 1, 0], 1), None);
        assert_eq!(attribute(&[3, 0, 1, 0, 9, 9], 1), None);
    }
}
