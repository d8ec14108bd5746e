//! What removed files held is free again, wherever it was.

use crate::rig::*;
use std::time::Duration;

const MIB: usize = 1 << 20;
const ESTALE: i32 = 116;

#[test]
fn large_files_leave_nothing_behind() {
    run(80, |rig| async move {
        let client = rig.client(1);
        let used = || (0..BUCKETS).map(|b| rig.leader(weft_wire::BucketId(b)).bucket().space().used).sum::<u64>();
        let before = used();
        let f = client.create(ROOT, "f").await.unwrap();
        client.write(f, 0, &vec![5; 6 * MIB]).await.unwrap();
        assert_eq!(client.blocks(f).await, 6 * 256);
        client.truncate(f, 2 * MIB as u64 + 1).await.unwrap();
        assert_eq!(client.blocks(f).await, 2 * 256 + 1);
        client.truncate(f, 0).await.unwrap();
        assert_eq!(client.blocks(f).await, 0);
        client.write(f, 0, &vec![5; 6 * MIB]).await.unwrap();
        assert_eq!(client.unlink(ROOT, "f").await, 0);
        rig.handle().sleep(Duration::from_secs(5)).await;
        assert_eq!(client.blocks(f).await, 0);
        assert_eq!(used(), before);
        // Nor do the buckets remember for ever what was cut.
        let remembered = async || {
            let mut keys = 0;
            for bucket in (0..BUCKETS).map(weft_wire::BucketId) {
                let prefix = weft_bucket::KeyBuilder::new(FS, weft_bucket::Tag::Cut).build();
                keys += rig.leader(bucket).bucket().scan_prefix(&prefix, usize::MAX).await.unwrap().len();
            }
            keys
        };
        assert!(remembered().await > 0);
        rig.fail_over(weft_wire::BucketId(1)).await;
        rig.handle().sleep(Duration::from_secs(300)).await;
        assert_eq!(remembered().await, 0);
    });
}

/// A removal that has begun goes on under the next leader, which does not know yet who has what open.
#[test]
fn nobody_sees_a_file_that_is_half_removed() {
    run(81, |rig| async move {
        let (one, other) = (rig.client(1), rig.client(2));
        let f = one.create(ROOT, "f").await.unwrap();
        one.open(f).await.unwrap();
        one.write(f, 0, &vec![5; 6 * MIB]).await.unwrap();
        let home = rig.bucket_of(f);
        let away = (0..BUCKETS).map(weft_wire::BucketId).find(|bucket| *bucket != home).unwrap();
        rig.kill(away);
        assert_eq!(one.unlink(ROOT, "f").await, 0);
        one.release(f).await;
        rig.handle().sleep(Duration::from_secs(5)).await;
        rig.fail_over(home).await;
        assert_eq!(errno(&other.open(f).await.unwrap_err()), ESTALE);
        assert_eq!(errno(&one.getattr(f).await.unwrap_err()), ESTALE);
        rig.lead(away).await;
        rig.handle().sleep(Duration::from_secs(30)).await;
        assert_eq!(one.blocks(f).await, 0);
    });
}
