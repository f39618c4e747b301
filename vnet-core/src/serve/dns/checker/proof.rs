//! What is proven: from the keys that are believed to one answer, by hickory's validator, and by us where it stops short.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use hickory_resolver::net::dnssec::DnssecDnsHandle;
use hickory_resolver::net::xfer::{DnsHandle as _, FirstAnswer as _};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::dnssec::rdata::{DNSKEY, DNSSECRData, RRSIG};
use hickory_resolver::proto::dnssec::{
    Algorithm, Proof, PublicKey as _, PublicKeyBuf, TrustAnchors, Verifier as _,
};
use hickory_resolver::proto::op::{DnsRequestOptions, DnsResponse, Query};
use hickory_resolver::proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_resolver::proto::serialize::binary::BinDecodable as _;
use tracing::debug;

use super::Ask;
use crate::dns::Checked;
use crate::dns::wire::ede;
use crate::model::TrustAnchor;

/// How deep one question may lead to others.
const MOST_DEEP: usize = 20;
/// Checks remembered for each group of upstreams, by record set.
const REMEMBERED: usize = 4_096;
/// Keys and signatures looked at before a zone's own given key is found among them.
const MOST_KEYS: usize = 4;

/// Begins with some keys, and asks the DNS thread for all else.
type Validator = DnssecDnsHandle<Ask>;

/// What is believed from the start, and what was found out from there.
pub(super) struct Trust {
    anchors: Arc<[TrustAnchor]>,
    from_root: Validator,
    /// What begins with a zone whose key the document gives.
    from_zones: RefCell<HashMap<Name, Zone>>,
}

/// A zone that is believed because of its own key.
struct Zone {
    /// The keys that it had, and until when they are signed.
    keys: Vec<DNSKEY>,
    until: u32,
    validator: Validator,
}

impl Trust {
    pub(super) fn new(asks: Ask, anchors: Arc<[TrustAnchor]>) -> Self {
        Self {
            from_root: validator(asks, keys(&anchors)),
            anchors,
            from_zones: RefCell::default(),
        }
    }

    /// Finds out about the answer to one question, whose name is in wire form.
    pub(super) async fn check(&self, name: &[u8], rtype: u16) -> Checked {
        let Ok(name) = Name::from_bytes(name) else {
            return Checked::Unknown;
        };
        // What a zone is signed with is for its parent to say.
        let rtype = RecordType::from(rtype);
        let within = if rtype == RecordType::DS {
            name.base_name()
        } else {
            name.clone()
        };
        let validator = match self.closest(&within).await {
            Ok(validator) => validator,
            Err(outcome) => return outcome,
        };
        let query = Query::query(name, rtype);
        let mut options = DnsRequestOptions::default();
        options.max_request_depth = MOST_DEEP;
        options.edns_set_dnssec_ok = true;
        match validator.lookup(query, options).first_answer().await {
            Ok(response) => verdict(response),
            Err(NetError::Dns(DnsError::Nsec {
                response, proof, ..
            })) => match proof {
                Proof::Secure | Proof::Insecure => proven(false, *response),
                Proof::Bogus | Proof::Indeterminate if wildcards_stand(&response) => {
                    verdict(*response)
                }
                Proof::Bogus | Proof::Indeterminate => Checked::Bogus(reason(&response)),
            },
            Err(NetError::ForeignClassRecord { .. }) => Checked::Bogus(ede::DNSSEC_BOGUS),
            Err(error) => {
                debug!(%error, "an answer cannot be checked");
                Checked::Unknown
            }
        }
    }

    /// The validator for a name: the one that begins with the root, or one that begins with the closest zone around the
    /// name whose key the document gives.
    async fn closest(&self, name: &Name) -> Result<Validator, Checked> {
        let anchors = &*self.anchors;
        let around = anchors.iter().filter_map(zone).filter(|z| z.zone_of(name));
        let Some(apex) = around.max_by_key(Name::num_labels) else {
            return Ok(self.from_root.clone());
        };
        let asks = self.from_root.inner().clone();
        let query = Query::query(apex.clone(), RecordType::DNSKEY);
        let response = asks
            .lookup(query, DnsRequestOptions::default())
            .first_answer()
            .await;
        let response = response.map_err(|_| Checked::Unknown)?;
        let keys: Vec<DNSKEY> = keys_of(&response, &apex).cloned().collect();
        let known = |zone: &&Zone| zone.keys == keys && zone.until >= now32();
        if let Some(zone) = self.from_zones.borrow().get(&apex).filter(known) {
            return Ok(zone.validator.clone());
        }
        let until = signed_until(anchors, &apex, &response)?;
        let validator = validator(asks, with_keys(anchors, &apex, &keys));
        let zone = Zone {
            keys,
            until,
            validator: validator.clone(),
        };
        self.from_zones.borrow_mut().insert(apex, zone);
        Ok(validator)
    }
}

/// The root's keys and those that the document adds, or those of the document's root in their place.
fn keys(anchors: &[TrustAnchor]) -> TrustAnchors {
    let mut keys = if anchors.iter().any(|a| a.zone.is_none()) {
        TrustAnchors::empty()
    } else {
        TrustAnchors::default()
    };
    for anchor in anchors {
        let key = PublicKeyBuf::new(anchor.key.clone(), Algorithm::from_u8(anchor.algorithm));
        let zone = zone(anchor).unwrap_or_else(Name::root);
        keys.insert_with_name(&key, (&zone).into());
    }
    keys
}

fn validator(asks: Ask, keys: TrustAnchors) -> Validator {
    DnssecDnsHandle::with_trust_anchor(asks, Arc::new(keys)).validation_cache_size(REMEMBERED)
}

fn zone(anchor: &TrustAnchor) -> Option<Name> {
    let zone = anchor.zone.as_ref()?;
    let mut name = Name::from_ascii(zone.as_str()).ok()?;
    name.set_fqdn(true);
    Some(name)
}

/// All keys of a zone that the document's key for it signs are as good as given: the validator would ask the zone's parent
/// about them.
fn with_keys(anchors: &[TrustAnchor], apex: &Name, of_zone: &[DNSKEY]) -> TrustAnchors {
    let mut keys = keys(anchors);
    for key in of_zone.iter().filter(|k| k.zone_key() && !k.revoke()) {
        keys.insert_with_name(key.public_key(), apex.into());
    }
    keys
}

/// Until when the keys of a zone are signed by one that the document gives.
fn signed_until(
    anchors: &[TrustAnchor],
    apex: &Name,
    response: &DnsResponse,
) -> Result<u32, Checked> {
    let given = |key: &DNSKEY| {
        let same = |a: &TrustAnchor| {
            a.key == key.public_key().public_bytes() && a.algorithm == u8::from(key.algorithm())
        };
        anchors
            .iter()
            .filter(|a| zone(a).as_ref() == Some(apex))
            .any(same)
    };
    let set = || response.answers.iter().filter(|r| r.name == *apex);
    let all: Vec<&Record> = set()
        .filter(|r| r.record_type() == RecordType::DNSKEY)
        .collect();
    let now = now32();
    let signed = |signature: &&RRSIG| {
        let of = signature.input();
        let in_time = of.sig_inception.get() <= now && now <= of.sig_expiration.get();
        let covers = of.type_covered == RecordType::DNSKEY && of.signer_name == *apex;
        let by = keys_of(response, apex).filter(|key| given(key));
        let good = |key: &DNSKEY| {
            !key.revoke()
                && key.calculate_key_tag().is_ok_and(|tag| tag == of.key_tag)
                && key
                    .verify_rrsig(apex, DNSClass::IN, signature, all.iter().copied())
                    .is_ok()
        };
        in_time && covers && by.take(MOST_KEYS).any(good)
    };
    match set().filter_map(signature).take(MOST_KEYS).find(signed) {
        Some(signature) => Ok(signature.input().sig_expiration.get()),
        None => Err(Checked::Bogus(match reason(response) {
            why @ (ede::SIGNATURE_EXPIRED | ede::SIGNATURE_NOT_YET_VALID) => why,
            _ => ede::DNSKEY_MISSING,
        })),
    }
}

fn keys_of<'a>(response: &'a DnsResponse, apex: &'a Name) -> impl Iterator<Item = &'a DNSKEY> {
    let set = response.answers.iter().filter(move |r| r.name == *apex);
    set.filter_map(dnskey)
}

fn dnskey(record: &Record) -> Option<&DNSKEY> {
    if let RData::DNSSEC(DNSSECRData::DNSKEY(key)) = &record.data {
        Some(key)
    } else {
        None
    }
}

pub(super) fn signature(record: &Record) -> Option<&RRSIG> {
    if let RData::DNSSEC(DNSSECRData::RRSIG(signature)) = &record.data {
        Some(signature)
    } else {
        None
    }
}

fn now32() -> u32 {
    u32::try_from(unix_now()).unwrap_or(u32::MAX)
}

fn unix_now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// RFC 4035 section 5.3.4: what a wildcard gave is proven by a record that says that nothing closer exists. The validator
/// also wants it said that the wildcard itself does not, which nobody can say where it lies right above the name.
fn wildcards_stand(response: &DnsResponse) -> bool {
    let mut some = false;
    for record in response.answers.iter().filter(|r| r.proof == Proof::Secure) {
        let Some(signature) = signature(record) else {
            continue;
        };
        let labels = usize::from(signature.input().num_labels);
        if labels >= usize::from(record.name.num_labels()) {
            continue;
        }
        some = true;
        let closer = record.name.trim_to(labels + 1);
        let zone = &signature.input().signer_name;
        if !response
            .authorities
            .iter()
            .any(|r| denies(r, &closer, zone))
        {
            return false;
        }
    }
    some
}

/// Whether a record proves that there is nothing at a name of a zone, nor under it.
fn denies(record: &Record, name: &Name, zone: &Name) -> bool {
    let RData::DNSSEC(DNSSECRData::NSEC(nsec)) = &record.data else {
        return false;
    };
    let (owner, next) = (&record.name, nsec.next_domain_name());
    let types = nsec.type_set();
    // RFC 6840 section 4.1: what the parent says at a delegation, or above a DNAME, is not about what lies below.
    let cut = types.contains(RecordType::NS) && !types.contains(RecordType::SOA)
        || types.contains(RecordType::DNAME);
    // The last record leads back to the zone's begin.
    let before_next = name < next || next == zone;
    record.proof == Proof::Secure
        && zone.zone_of(owner)
        && owner < name
        && before_next
        && !name.zone_of(next)
        && !(cut && owner.zone_of(name))
}

/// RFC 4035 sections 3.2.3 and 4.9.3: all of the answer and of the authority counts.
fn verdict(response: DnsResponse) -> Checked {
    let mut secure = true;
    let mut some = false;
    for record in told(&response) {
        some = true;
        match record.proof {
            Proof::Secure => {}
            Proof::Insecure => secure = false,
            Proof::Bogus | Proof::Indeterminate => return Checked::Bogus(reason(&response)),
        }
    }
    proven(secure && some, response)
}

fn proven(secure: bool, response: DnsResponse) -> Checked {
    // The validator has cut lifetimes to those of the signatures (RFC 4035 section 5.3.3).
    let ttl = told(&response).map(|record| record.ttl).min();
    Checked::Proven {
        secure,
        ttl: ttl.unwrap_or(0),
        message: response.into_buffer(),
    }
}

/// What a message says, without its signatures.
fn told(response: &DnsResponse) -> impl Iterator<Item = &Record> {
    let all = response.answers.iter().chain(&response.authorities);
    all.filter(|record| !record.record_type().is_rrsig())
}

/// What is wrong, as far as the message itself shows it.
fn reason(response: &DnsResponse) -> u16 {
    let now = unix_now();
    let mut signed = false;
    for record in response.answers.iter().chain(&response.authorities) {
        let Some(signature) = signature(record) else {
            continue;
        };
        signed = true;
        if u64::from(signature.input().sig_expiration.get()) < now {
            return ede::SIGNATURE_EXPIRED;
        }
        if u64::from(signature.input().sig_inception.get()) > now {
            return ede::SIGNATURE_NOT_YET_VALID;
        }
    }
    match (signed, response.answers.is_empty()) {
        (true, _) => ede::DNSSEC_BOGUS,
        (false, true) => ede::NSEC_MISSING,
        (false, false) => ede::RRSIGS_MISSING,
    }
}
