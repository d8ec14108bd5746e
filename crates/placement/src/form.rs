//! The first map of a cluster.

use crate::quota::{Holder, Rank, quotas};
use crate::request::FormRequest;
use crate::{BUCKET_BITS_MAX, CORES_MAX, DRIVES_MAX, MAP_BYTES_MAX, NODES_MAX, Refusal};
use crate::{ensembles, leaders, members};
use std::collections::{BTreeMap, BTreeSet};
use weft_wire::map::{Bucket, Drive, Ensemble, Map, NewDrive, NewNode, Node, Protection, Purpose, State};
use weft_wire::{BucketId, ClientId, CoreId, DomainId, DriveId, Epoch, Incarnation, Layout, MapVersion, NodeId};

/// Buckets are split over cores finely enough that one core more or less can be balanced.
pub const BUCKETS_PER_CORE_MIN: u64 = 4;
/// Two nodes share so many on average: what a node held is made again by all others, and none has much more to do than another.
pub const BUCKETS_PER_PAIR_MIN: u64 = 4;
/// Of the bytes that a map may have, the rest is for what comes later: clients, filesystems, ensembles beside the newest.
const MAP_SHARE: (usize, usize) = (7, 8);
/// Fewer zones would leave a bucket no room beside its two reserved zone sets.
pub const ZONES_PER_BUCKET_MIN: u32 = 16;

/// Encoded: a drive's number; and what a bucket has beside those, or a node beside what it was added with.
const BYTES_PER_SHARD: usize = 2;
const BYTES_BESIDE: usize = 14;

const FIRST_EPOCH: Epoch = Epoch(1);
const FIRST_INCARNATION: Incarnation = Incarnation(1);

/// The whole map of a new cluster, version 1, or why there can't be one.
///
/// Every leader's epoch is 1, of incarnation 1. The same request gives the same map.
pub fn form(request: &FormRequest) -> Result<Map, Refusal> {
    let protection = request.protection;
    check_protection(protection)?;
    if request.name.is_empty() {
        return Err(Refusal::NameEmpty);
    }
    check_nodes(&request.nodes, &BTreeMap::new(), &BTreeMap::new())?;
    let domain_of = number_domains(&request.nodes);
    check_domains(request, &domain_of)?;

    let (nodes, drives) = number(request, &domain_of);
    let table = DriveTable::new(&nodes, &drives);
    let bits = choose_bits(request, &table)?;
    let buckets = 1u64 << bits;
    let quota = table.quotas(buckets, protection)?;

    let chosen = members::assign(
        &table.holders,
        &table.node_of,
        &quota,
        table.domains,
        buckets,
        protection.shards(),
        request.cluster.0 as u64,
    );
    let near: Vec<Vec<usize>> = chosen.iter().map(|members| table.near(members)).collect();
    let leader_of = leaders::balance(&near, &vec![None; chosen.len()], table.cores.len());
    let own: Vec<Option<usize>> =
        chosen.iter().zip(&leader_of).map(|(members, &core)| table.own(members, table.cores[core])).collect();
    let ensembles = ensembles::choose(&chosen, &own, &quota, protection.ensemble());

    let buckets = (0..chosen.len())
        .map(|bucket| {
            let mut members = chosen[bucket].clone();
            // Data and parity go round, so that no drive is read more than another.
            members.sort_unstable();
            let shift = bucket % members.len();
            members.rotate_left(shift);
            Bucket {
                leader: table.cores[leader_of[bucket]],
                epoch: FIRST_EPOCH,
                incarnation: FIRST_INCARNATION,
                layout: Layout(1),
                members: members.iter().map(|&drive| table.ids[drive]).collect(),
                former: Vec::new(),
                ensembles: vec![Ensemble {
                    since: FIRST_EPOCH,
                    drives: ensembles[bucket].iter().map(|&drive| table.ids[drive]).collect(),
                }],
            }
        })
        .collect();
    let managers = choose_managers(&nodes, &drives, protection);
    let next_node = NodeId(nodes.len() as u16 + 1);
    let next_drive = DriveId(drives.len() as u32 + 1);
    Ok(Map {
        version: MapVersion(1),
        cluster: request.cluster,
        name: request.name.clone(),
        secret: request.secret,
        protection,
        bucket_bits: bits,
        nodes,
        drives,
        buckets,
        filesystems: BTreeMap::new(),
        managers,
        next_client: ClientId(1),
        clients: BTreeMap::new(),
        next_node,
        next_drive,
        hot_spare: 0,
    })
}

fn check_protection(protection: Protection) -> Result<(), Refusal> {
    if !(3..=16).contains(&protection.data) {
        return Err(Refusal::Data(protection));
    }
    if !matches!(protection.parity, 2 | 4) {
        return Err(Refusal::Parity(protection));
    }
    Ok(())
}

/// Each node by itself, and against each other and what the cluster already has.
pub(crate) fn check_nodes(
    new: &[NewNode],
    nodes: &BTreeMap<NodeId, Node>,
    drives: &BTreeMap<DriveId, Drive>,
) -> Result<(), Refusal> {
    let count = |what, given, most| if given > most { Err(Refusal::TooMany { what, given, most }) } else { Ok(()) };
    count("nodes", new.len() + nodes.len(), NODES_MAX)?;
    count("drives", new.iter().map(|node| node.drives.len()).sum::<usize>() + drives.len(), DRIVES_MAX)?;
    let mut names: BTreeSet<&str> = nodes.values().map(|node| node.name.as_str()).collect();
    let mut uuids: BTreeSet<_> = drives.values().map(|drive| drive.uuid).collect();
    let mut data: BTreeSet<_> = nodes.values().flat_map(|node| node.cores.iter().copied()).collect();
    let mut control: BTreeSet<_> = nodes.values().map(|node| node.control).collect();
    for node in new {
        if node.name.is_empty() {
            return Err(Refusal::NameEmpty);
        }
        if !names.insert(&node.name) {
            return Err(Refusal::NameTwice(node.name.clone()));
        }
        if node.cores.is_empty() {
            return Err(Refusal::NoCores(node.name.clone()));
        }
        count("cores of a node", node.cores.len(), CORES_MAX)?;
        for address in &node.cores {
            if !data.insert(*address) {
                return Err(Refusal::AddressTwice(*address));
            }
        }
        if !control.insert(node.control) {
            return Err(Refusal::AddressTwice(node.control));
        }
        for drive in &node.drives {
            if !uuids.insert(drive.uuid) {
                return Err(Refusal::DriveTwice(drive.uuid));
            }
            if usize::from(drive.core) >= node.cores.len() {
                return Err(Refusal::DriveCore {
                    node: node.name.clone(),
                    drive: drive.uuid,
                    core: drive.core,
                    cores: node.cores.len(),
                });
            }
            let product = u128::from(drive.zone_bytes) * u128::from(drive.zones);
            if product == 0 || product > u128::from(drive.capacity_bytes) {
                return Err(Refusal::DriveSize {
                    node: node.name.clone(),
                    drive: drive.uuid,
                    capacity_bytes: drive.capacity_bytes,
                    zone_bytes: drive.zone_bytes,
                    zones: drive.zones,
                    product,
                });
            }
        }
    }
    Ok(())
}

/// Domains in order of their first node.
fn number_domains(nodes: &[NewNode]) -> Vec<DomainId> {
    let mut named: BTreeMap<&str, DomainId> = BTreeMap::new();
    let mut next = 1;
    let mut fresh = || {
        next += 1;
        DomainId(next - 1)
    };
    nodes
        .iter()
        .map(|node| match &node.domain {
            Some(name) => *named.entry(name).or_insert_with(&mut fresh),
            None => fresh(),
        })
        .collect()
}

fn check_domains(request: &FormRequest, domain_of: &[DomainId]) -> Result<(), Refusal> {
    let protection = request.protection;
    let domains: BTreeSet<_> = domain_of.iter().collect();
    if domains.len() < protection.domains() {
        return Err(Refusal::Domains { protection, domains: domains.len(), nodes: request.nodes.len() });
    }
    let with_drives: BTreeSet<_> = request
        .nodes
        .iter()
        .zip(domain_of)
        .filter(|(node, _)| !node.drives.is_empty())
        .map(|(_, domain)| domain)
        .collect();
    if with_drives.len() < protection.shards() {
        return Err(Refusal::DomainsWithDrives { protection, domains: with_drives.len() });
    }
    Ok(())
}

/// Gives ids in the order of the request.
fn number(request: &FormRequest, domain_of: &[DomainId]) -> (BTreeMap<NodeId, Node>, BTreeMap<DriveId, Drive>) {
    let mut nodes = BTreeMap::new();
    let mut drives = BTreeMap::new();
    for (index, (new, &domain)) in request.nodes.iter().zip(domain_of).enumerate() {
        let id = NodeId(index as u16 + 1);
        for new in &new.drives {
            let drive_id = DriveId(drives.len() as u32 + 1);
            drives.insert(drive_id, drive(drive_id, id, new));
        }
        nodes.insert(id, node(id, domain, new));
    }
    (nodes, drives)
}

pub(crate) fn node(id: NodeId, domain: DomainId, new: &NewNode) -> Node {
    Node {
        id,
        name: new.name.clone(),
        domain,
        domain_name: new.domain.clone(),
        cores: new.cores.clone(),
        control: new.control,
        incarnation: FIRST_INCARNATION,
        state: State::Up,
        purpose: Purpose::Serve,
    }
}

pub(crate) fn drive(id: DriveId, node: NodeId, new: &NewDrive) -> Drive {
    Drive {
        id,
        uuid: new.uuid,
        node,
        core: new.core,
        capacity_bytes: new.capacity_bytes,
        zone_bytes: new.zone_bytes,
        zones: new.zones,
        state: State::Up,
        purpose: Purpose::Serve,
    }
}

/// Drives and cores as indices, with what placement asks of them.
pub(crate) struct DriveTable {
    pub ids: Vec<DriveId>,
    pub holders: Vec<Holder>,
    pub zones: Vec<u32>,
    /// Drives whose shards are to be made again elsewhere at once.
    pub given_up: Vec<bool>,
    /// Drives that can be given shards now.
    pub up: Vec<bool>,
    /// Index of each drive's node.
    pub node_of: Vec<usize>,
    pub domains: usize,
    /// Cores of nodes that may lead, in order.
    pub cores: Vec<CoreId>,
    core_of: Vec<CoreId>,
    names: Vec<(String, weft_wire::Uuid)>,
}

impl DriveTable {
    /// Drives that must not get shards have weight 0; nodes that must not lead have no core in `cores`.
    pub fn new(nodes: &BTreeMap<NodeId, Node>, drives: &BTreeMap<DriveId, Drive>) -> Self {
        let node_index: BTreeMap<NodeId, usize> = nodes.keys().enumerate().map(|(index, id)| (*id, index)).collect();
        let domain_ids: BTreeSet<DomainId> = nodes.values().map(|node| node.domain).collect();
        let domain_index: BTreeMap<DomainId, usize> =
            domain_ids.iter().enumerate().map(|(index, id)| (*id, index)).collect();
        let mut table = Self {
            ids: Vec::new(),
            holders: Vec::new(),
            zones: Vec::new(),
            given_up: Vec::new(),
            up: Vec::new(),
            node_of: Vec::new(),
            domains: domain_ids.len(),
            cores: nodes
                .values()
                .filter(|node| node.state == State::Up)
                .flat_map(|node| (0..node.cores.len()).map(|core| CoreId { node: node.id, core: core as u8 }))
                .collect(),
            core_of: Vec::new(),
            names: Vec::new(),
        };
        for drive in drives.values() {
            let Some(node) = nodes.get(&drive.node) else { continue };
            let takes = |state, purpose| matches!(state, State::Up | State::Away) && purpose == Purpose::Serve;
            let weight = u64::from(drive.zones).saturating_mul(drive.zone_bytes);
            table.ids.push(drive.id);
            table.holders.push(Holder {
                domain: domain_index[&node.domain],
                weight: if takes(drive.state, drive.purpose) && takes(node.state, node.purpose) { weight } else { 0 },
            });
            table.given_up.push(drive.state == State::Failed || node.state == State::Failed);
            table.up.push(drive.state == State::Up && node.state == State::Up);
            table.zones.push(drive.zones);
            table.node_of.push(node_index[&drive.node]);
            table.core_of.push(CoreId { node: drive.node, core: drive.core });
            table.names.push((node.name.clone(), drive.uuid));
        }
        table
    }

    pub fn quotas(&self, buckets: u64, protection: Protection) -> Result<Vec<u64>, Refusal> {
        let ranks = vec![Rank::default(); self.holders.len()];
        quotas(&self.holders, &ranks, self.domains, buckets, protection.shards() as u64, 1)
            .ok_or_else(|| Refusal::DomainsWithDrives { protection, domains: self.domains_with_weight() })
    }

    /// What each drive should hold now, and how many shards of a bucket a domain has: one, as long as there are enough
    /// domains. `None`: there are too few drives for everything.
    pub fn quotas_now(&self, ranks: &[Rank], buckets: u64, protection: Protection) -> Option<(Vec<u64>, usize)> {
        let shards = protection.shards();
        (1..=shards).find_map(|per_domain| {
            let quota = quotas(&self.holders, ranks, self.domains, buckets, shards as u64, per_domain as u64)?;
            Some((quota, per_domain))
        })
    }

    pub fn domains_with_weight(&self) -> usize {
        self.holders
            .iter()
            .filter(|holder| holder.weight > 0)
            .map(|holder| holder.domain)
            .collect::<BTreeSet<_>>()
            .len()
    }

    /// Domains that can be given shards now.
    pub fn domains_that_take(&self) -> usize {
        let drives = self.holders.iter().zip(&self.up).filter(|(holder, up)| **up && holder.weight > 0);
        drives.map(|(holder, _)| holder.domain).collect::<BTreeSet<_>>().len()
    }

    /// The cores that own one of `members` and may lead, as indices of `cores`.
    pub fn near(&self, members: &[usize]) -> Vec<usize> {
        let cores: BTreeSet<usize> =
            members.iter().filter_map(|&drive| self.cores.binary_search(&self.core_of[drive]).ok()).collect();
        cores.into_iter().collect()
    }

    /// The member that `core` owns.
    pub fn own(&self, members: &[usize], core: CoreId) -> Option<usize> {
        members.iter().copied().find(|&drive| self.core_of[drive] == core)
    }

    /// The first drive on which 2^bits buckets would have too few zones each.
    fn too_small(&self, bits: u8, protection: Protection) -> Result<Option<Refusal>, Refusal> {
        let buckets = 1u64 << bits;
        let quota = self.quotas(buckets, protection)?;
        Ok((0..self.ids.len())
            .find(|&drive| quota[drive] * u64::from(ZONES_PER_BUCKET_MIN) > u64::from(self.zones[drive]))
            .map(|drive| Refusal::Zones {
                node: self.names[drive].0.clone(),
                drive: self.names[drive].1,
                zones: self.zones[drive],
                buckets: quota[drive],
                total: buckets,
                each: u64::from(self.zones[drive]) / quota[drive],
                least: ZONES_PER_BUCKET_MIN,
            }))
    }
}

/// Several buckets for each core and each two nodes, as far as the zones of every drive and the size of the map allow.
fn choose_bits(request: &FormRequest, table: &DriveTable) -> Result<u8, Refusal> {
    let protection = request.protection;
    if let Some(bits) = request.bucket_bits {
        if !(1..=BUCKET_BITS_MAX).contains(&bits) {
            return Err(Refusal::BucketBits { given: bits, most: BUCKET_BITS_MAX });
        }
        return match table.too_small(bits, protection)? {
            Some(refusal) => Err(refusal),
            None => Ok(bits),
        };
    }
    let cores: u64 = request.nodes.iter().map(|node| node.cores.len() as u64).sum();
    let nodes: u64 = request.nodes.iter().filter(|node| !node.drives.is_empty()).count() as u64;
    let pairs_of_bucket = (protection.shards() * (protection.shards() - 1)) as u64;
    let for_pairs = (BUCKETS_PER_PAIR_MIN * nodes * (nodes - 1)).div_ceil(pairs_of_bucket);
    let bits_of = |buckets: u64| buckets.next_power_of_two().trailing_zeros() as u8;
    let for_cores = bits_of(cores * BUCKETS_PER_CORE_MIN);
    let mut bits = bits_of(for_pairs).min(map_bits_max(request)).max(for_cores).clamp(1, BUCKET_BITS_MAX);
    loop {
        match table.too_small(bits, protection)? {
            None => return Ok(bits),
            Some(refusal) if bits == 1 => return Err(refusal),
            Some(_) => bits -= 1,
        }
    }
}

/// As many buckets as the map has room for beside this many nodes and drives.
fn map_bits_max(request: &FormRequest) -> u8 {
    let shards = request.protection.shards() + request.protection.ensemble();
    let taken = weft_wire::encode(&request.nodes).len() + request.nodes.len() * BYTES_BESIDE;
    let left = (MAP_BYTES_MAX * MAP_SHARE.0 / MAP_SHARE.1).saturating_sub(taken);
    let buckets = left / (BYTES_BESIDE + BYTES_PER_SHARD * shards);
    buckets.max(1).ilog2() as u8
}

/// 2P+1 nodes of different domains; those with two drives or more first, as they keep two copies of the consensus' state.
fn choose_managers(
    nodes: &BTreeMap<NodeId, Node>,
    drives: &BTreeMap<DriveId, Drive>,
    protection: Protection,
) -> Vec<NodeId> {
    let mut order: Vec<&Node> = nodes.values().collect();
    order.sort_by_key(|node| {
        let copies = drives.values().filter(|drive| drive.node == node.id).count().min(2);
        (core::cmp::Reverse(copies), node.id)
    });
    let mut domains = BTreeSet::new();
    let mut managers: Vec<NodeId> = order
        .into_iter()
        .filter(|node| domains.insert(node.domain))
        .map(|node| node.id)
        .take(protection.managers())
        .collect();
    managers.sort_unstable();
    managers
}

/// The bucket table of a map as indices of `table`. Members that the table doesn't know are left out.
pub(crate) fn indices(map: &Map, table: &DriveTable) -> Vec<Vec<usize>> {
    map.buckets
        .iter()
        .map(|bucket| bucket.members.iter().filter_map(|id| table.ids.binary_search(id).ok()).collect())
        .collect()
}

/// All buckets' ids, in order.
pub(crate) fn bucket_ids(map: &Map) -> impl Iterator<Item = BucketId> + use<> {
    (0..map.buckets.len() as u32).map(BucketId)
}
