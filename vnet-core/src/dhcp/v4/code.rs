//! The options by which the protocol itself works. What a client is told besides is rows of the option table,
//! [`crate::model::DHCP_OPTIONS`].

pub(super) const PAD: u8 = 0;
pub(super) const SUBNET_MASK: u8 = 1;
pub(super) const ROUTER: u8 = 3;
pub(super) const DNS: u8 = 6;
pub(super) const HOST_NAME: u8 = 12;
pub(super) const DOMAIN: u8 = 15;
pub(super) const MTU: u8 = 26;
pub(super) const BROADCAST: u8 = 28;
pub(super) const REQUESTED_ADDRESS: u8 = 50;
pub(super) const LEASE_TIME: u8 = 51;
pub(super) const OVERLOAD: u8 = 52;
pub(super) const MESSAGE_TYPE: u8 = 53;
pub(super) const SERVER_ID: u8 = 54;
pub(super) const PARAMETERS: u8 = 55;
pub(super) const MESSAGE: u8 = 56;
pub(super) const MAX_SIZE: u8 = 57;
pub(super) const T1: u8 = 58;
pub(super) const T2: u8 = 59;
pub(super) const VENDOR_CLASS: u8 = 60;
pub(super) const CLIENT_ID: u8 = 61;
pub(super) const TFTP_SERVER: u8 = 66;
pub(super) const BOOT_FILE: u8 = 67;
pub(super) const USER_CLASS: u8 = 77;
pub(super) const RAPID_COMMIT: u8 = 80;
pub(super) const FQDN: u8 = 81;
pub(super) const RELAY: u8 = 82;
pub(super) const ARCH: u8 = 93;
pub(super) const MACHINE: u8 = 97;
pub(super) const SUBNET_SELECTION: u8 = 118;
pub(super) const SEARCH: u8 = 119;
pub(super) const ROUTES: u8 = 121;
pub(super) const MS_ROUTES: u8 = 249;
pub(super) const END: u8 = 255;

/// Suboptions of a relay's information (RFC 3046, 3527, 5107).
pub(super) mod agent {
    pub(in super::super) const CIRCUIT: u8 = 1;
    pub(in super::super) const REMOTE: u8 = 2;
    pub(in super::super) const LINK: u8 = 5;
    pub(in super::super) const SERVER_ID: u8 = 11;
}
