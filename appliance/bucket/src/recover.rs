//! Opening a bucket: the journal's new epoch, the newest root, its manifest, then the records after it.

use crate::BucketError;
use crate::batch::{BatchRecord, ZoneSetChange};
use crate::bucket::{Bucket, BucketParams, Inner};
use crate::cache::Cache;
use crate::checkpoint::{INDEX_VERSION, Manifest, RootBody};
use crate::drives::Drives;
use crate::extent::Location;
use crate::freeing::free_unknown_zones;
use crate::index::{Index, Run};
use crate::io::DriveCalls;
use crate::stripes::{SetLimits, Stripes, concat};
use crate::zones::ZoneTable;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use weft_journal::{Log, LogParams};
use weft_reactor::Handle;
use weft_transport::rpc::Network;
use weft_wire::Seq;
use weft_wire::limits::BLOCK_BYTES;

impl Bucket {
    /// Begins the epoch and finds everything again. When it returns, the epoch start stands on P+1 and the bucket serves.
    /// `progress` is told what the recovery waits for.
    pub async fn open(
        params: BucketParams,
        network: Rc<dyn Network>,
        handle: Handle,
        progress: impl Fn(&str) + 'static,
    ) -> Result<Bucket, BucketError> {
        let recovered = Log::recover_with(
            LogParams {
                cluster: params.cluster,
                bucket: params.id,
                epoch: params.epoch,
                protection: params.protection,
                ensembles: params.ensembles.clone(),
                drives: Rc::clone(&params.find),
                beats: params.beats,
                tunables: params.journal,
            },
            Rc::clone(&network),
            handle.clone(),
            progress,
        )
        .await
        .map_err(|error| match error {
            weft_journal::RecoverError::Sealed(epoch) => BucketError::Deposed(epoch),
            error => BucketError::Recover(error),
        })?;
        let calls = DriveCalls { network, cluster: params.cluster, bucket: params.id, find: Rc::clone(&params.find) };
        let drives = Drives::new(handle.clone(), params.members, params.states);
        let limits = SetLimits { max: params.tunables.zone_sets_max, reserved: params.tunables.zone_sets_reserved };
        let stripes = Rc::new(Stripes::new(handle.clone(), calls, params.protection, params.epoch, drives, limits)?);
        let mut records = Vec::with_capacity(recovered.records.len());
        for record in &recovered.records {
            let (batch, data) = BatchRecord::decode(&record.payload)
                .ok_or_else(|| BucketError::Corrupt(format!("record {} of {}", record.header.seq, params.id)))?;
            records.push((record.header.seq, batch, data));
        }
        let (manifest, root) = match recovered.root {
            Some((_, root)) => {
                let changes = records.iter().flat_map(|(_, batch, _)| &batch.zone_sets);
                read_manifest(&stripes, &root.body, changes).await?
            }
            None => (Manifest::default(), None),
        };
        let mut zones = ZoneTable::from_image(params.protection.data, manifest.zones);
        let mut manifest_stripes = Vec::new();
        for (stripe, set) in root.into_iter().flat_map(|root| root.stripes) {
            zones.add_set(set);
            zones.add_stripe(stripe.id, stripe.entry());
            manifest_stripes.push(stripe);
        }
        for stripe in manifest.runs.iter().flat_map(|run| &run.stripes) {
            zones.add_stripe(stripe.id, stripe.entry());
        }
        *stripes.zones.borrow_mut() = zones;
        let runs = manifest.runs.into_iter().map(Run::new).collect();
        let bucket = Bucket(Rc::new(Inner {
            id: params.id,
            epoch: params.epoch,
            protection: params.protection,
            zone_rows: params.zone_rows,
            tunables: params.tunables,
            handle: handle.clone(),
            log: recovered.log,
            stripes,
            index: Index::new(runs, params.tunables.cache_bytes_max, params.tunables.sections_bytes_max),
            locks: Default::default(),
            held: RefCell::default(),
            next_serial: Cell::new(manifest.next_serial.max(1)),
            reserved_blocks: Cell::new(manifest.reserved_blocks),
            rebuild_stride: Cell::default(),
            data_blocks_most: Cell::new(0),
            next_run: Cell::new(manifest.next_run),
            manifest: RefCell::new(manifest_stripes),
            merging: RefCell::default(),
            cleaning: Cell::default(),
            frozen_at: Cell::new(Seq(0)),
            progress: Default::default(),
            views: RefCell::new(Cache::new(params.tunables.views_bytes_max)),
            counters: Default::default(),
            closed: Cell::new(false),
            starved: Cell::new(false),
            ended: RefCell::new(None),
            finishing: Cell::new(false),
            planning: Cell::new(true),
            planner_done: Default::default(),
            step: Cell::new(None),
            pauses: RefCell::default(),
            rebuilds: RefCell::default(),
            asked_before: Cell::new(0),
        }));
        for (seq, batch, data) in records {
            bucket.apply(seq, batch, vec![data]);
        }
        bucket.find_live_held().await?;
        let weak = Rc::downgrade(&bucket.0);
        bucket.0.stripes.set_recorder(Box::new(move |set| match weak.upgrade().map(Bucket) {
            Some(bucket) => Box::pin(bucket.record_zone_set(set)),
            None => Box::pin(std::future::ready(Err(BucketError::Stopped))),
        }));
        handle.spawn("bucket planner", bucket.clone().plan()).detach();
        if weft_wire::mutant("two_planners") {
            handle.spawn("bucket planner", bucket.clone().plan()).detach();
        }
        handle.spawn("zones nobody names", free_unknown_zones(Rc::downgrade(&bucket.0))).detach();
        Ok(bucket)
    }

    /// Of the blocks in replayed records, those that no later record overwrote or moved into a stripe.
    async fn find_live_held(&self) -> Result<(), BucketError> {
        let pieces = self.0.held.borrow().all();
        for (seq, piece) in pieces {
            let range = piece.first..piece.first + u64::from(piece.blocks);
            let mut live = vec![false; piece.blocks as usize];
            for extent in self.extents(piece.object, range.clone(), usize::MAX).await? {
                let Some(extent) = extent.clip(&range) else { continue };
                let Location::Journal { seq: at, block } = extent.location else { continue };
                let offset = (extent.first - piece.first) as u32;
                if at == seq && block == piece.offset + offset {
                    live.iter_mut().skip(offset as usize).take(extent.blocks as usize).for_each(|live| *live = true);
                }
            }
            let mut held = self.0.held.borrow_mut();
            for (i, live) in live.into_iter().enumerate() {
                if !live {
                    held.kill(seq, piece.offset + i as u32, 1);
                }
            }
        }
        Ok(())
    }
}

/// Reads the manifest from where its shards are by now: after the root some may have moved.
async fn read_manifest(
    stripes: &Stripes,
    body: &[u8],
    changes: impl Iterator<Item = &ZoneSetChange>,
) -> Result<(Manifest, Option<RootBody>), BucketError> {
    let root: RootBody =
        weft_wire::decode(body).map_err(|_| BucketError::Corrupt("the body of a root record".into()))?;
    if root.version != INDEX_VERSION {
        let (found, known) = (root.version, INDEX_VERSION);
        return Err(BucketError::Corrupt(format!("an index of version {found}: this program reads version {known}")));
    }
    for (_, set) in &root.stripes {
        stripes.zones.borrow_mut().add_set(set.clone());
    }
    for change in changes {
        if let ZoneSetChange::Move { set, shard, member } = change {
            stripes.zones.borrow_mut().set_member(*set, *shard, *member);
        }
    }
    let mut parts = Vec::with_capacity(root.stripes.len());
    for (stripe, _) in &root.stripes {
        parts.push(stripes.read_index_stripe(stripe, 0, stripe.data_blocks).await?);
    }
    let data = concat(parts);
    debug_assert_eq!(data.len() % BLOCK_BYTES, 0);
    let manifest = data
        .get(..root.manifest_bytes as usize)
        .and_then(|data| weft_wire::decode(data).ok())
        .ok_or_else(|| BucketError::Corrupt("a manifest".into()))?;
    Ok((manifest, Some(root)))
}
