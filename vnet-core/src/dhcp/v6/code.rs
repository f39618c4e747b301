//! Numbers by which the protocol itself works (RFC 8415 section 21, 4704, 6939). What a client is told besides is rows
//! of the option table, [`crate::model::DHCP6_OPTIONS`].

pub(super) const RELAY_FORWARD: u8 = 12;
pub(super) const RELAY_REPLY: u8 = 13;

pub(super) const CLIENT_ID: u16 = 1;
pub(super) const SERVER_ID: u16 = 2;
pub(super) const IA_NA: u16 = 3;
pub(super) const IA_TA: u16 = 4;
pub(super) const IA_ADDRESS: u16 = 5;
pub(super) const OPTION_REQUEST: u16 = 6;
pub(super) const PREFERENCE: u16 = 7;
pub(super) const RELAY_MESSAGE: u16 = 9;
pub(super) const STATUS: u16 = 13;
pub(super) const RAPID_COMMIT: u16 = 14;
pub(super) const USER_CLASS: u16 = 15;
pub(super) const VENDOR_CLASS: u16 = 16;
pub(super) const INTERFACE_ID: u16 = 18;
pub(super) const DNS: u16 = 23;
pub(super) const SEARCH: u16 = 24;
pub(super) const IA_PD: u16 = 25;
pub(super) const REFRESH: u16 = 32;
pub(super) const FQDN: u16 = 39;
pub(super) const BOOT_FILE: u16 = 59;
pub(super) const ARCH: u16 = 61;
pub(super) const LINK_LAYER: u16 = 79;

pub(super) const SUCCESS: u16 = 0;
pub(super) const NO_ADDRESSES: u16 = 2;
pub(super) const NO_BINDING: u16 = 3;
pub(super) const NOT_ON_LINK: u16 = 4;
pub(super) const USE_MULTICAST: u16 = 5;
pub(super) const NO_PREFIX: u16 = 6;
