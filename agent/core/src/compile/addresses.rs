//! Who owns an address?

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::sharded::{Addressed, IpMap, Named};
use crate::resource::NamespacedName;

/// Addresses with one owner each. Where several objects claim one, the lowest rank owns it, then the first name.
#[derive(Debug)]
pub(super) struct Addresses<V: Addressed> {
    pub(super) owners: IpMap<V>,
    /// All claims to the addresses that have more than one.
    contested: HashMap<IpAddr, BTreeMap<(i64, NamespacedName), Arc<V>>>,
    /// Whether `contested` changed since it was last reported.
    pub(super) unreported: bool,
}

impl<V: Addressed> Default for Addresses<V> {
    fn default() -> Self {
        Self { owners: IpMap::default(), contested: HashMap::new(), unreported: false }
    }
}

impl<V: Named + Addressed> Addresses<V> {
    /// Adds a claim or brings it up to date; `rank_of` answers the rank of the present owner.
    pub(super) fn claim(&mut self, ip: IpAddr, value: &Arc<V>, rank: i64, rank_of: impl Fn(&V) -> i64) {
        let key = value.name();
        let uncontested = !self.contested.contains_key(&ip);
        if uncontested && self.owners.get(&ip).is_some_and(|owner| Arc::ptr_eq(owner, value)) {
            return;
        }
        if let Some(claims) = self.contested.get_mut(&ip) {
            claims.retain(|(_, claimant), _| claimant != key);
            claims.insert((rank, key.clone()), value.clone());
        } else {
            match self.owners.get(&ip).filter(|owner| owner.name() != key) {
                None => {
                    self.owners.insert(ip, value.clone());
                    return;
                }
                Some(owner) => {
                    let claims = [(rank_of(owner), owner), (rank, value)];
                    let claims = claims.map(|(rank, value)| ((rank, value.name().clone()), value.clone()));
                    self.contested.insert(ip, claims.into());
                }
            }
        }
        self.unreported = true;
        self.settle(ip);
    }

    /// Takes a claim back.
    pub(super) fn release(&mut self, ip: IpAddr, key: &NamespacedName) {
        if let Some(claims) = self.contested.get_mut(&ip) {
            claims.retain(|(_, claimant), _| claimant != key);
            self.unreported = true;
            self.settle(ip);
        } else if self.owners.get(&ip).is_some_and(|owner| owner.name() == key) {
            self.owners.remove(&ip);
        }
    }

    fn settle(&mut self, ip: IpAddr) {
        let Some(claims) = self.contested.get(&ip) else {
            return;
        };
        if let Some(owner) = claims.values().next() {
            self.owners.insert(ip, owner.clone());
        }
        if claims.len() < 2 {
            self.contested.remove(&ip);
        }
    }

    /// Address, owner and loser of every claim that is not honoured.
    pub(super) fn losers(&self) -> impl Iterator<Item = (IpAddr, &NamespacedName, &NamespacedName)> {
        self.contested.iter().flat_map(|(ip, claims)| {
            let owner = claims.keys().next();
            let losers = claims.keys().skip(1);
            losers.filter_map(move |(_, loser)| Some((*ip, &owner?.1, loser)))
        })
    }
}
