//! Exactly once, and for good: requests that come again, leaders that change, power that fails.

use crate::rig::*;
use bytes::Bytes;
use weft_drive::mem::CrashKeeps;
use weft_wire::BucketId;
use weft_wire::fs::*;

fn create(name: &str) -> FsOp {
    let node = NewNode {
        kind: FileKind::File,
        mode: 0o644,
        umask: 0,
        rdev: 0,
        caller: Caller { uid: 0, gid: 0 },
        target: Vec::new(),
    };
    FsOp::Create { dir: ROOT, name: name.into(), node, exclusive: true, open: false }
}

#[test]
fn a_request_that_comes_again_gets_the_same_answer() {
    run(100, |rig| async move {
        let client = rig.client(1);
        let home = rig.bucket_of(ROOT);
        let first = client.ask(create("f")).await.unwrap();
        let sequence = client.last_sequence(home);
        assert_eq!(client.ask_again(home, sequence, create("f"), Bytes::new()).await.unwrap(), first);
        rig.fail_over(home).await;
        assert_eq!(client.ask_again(home, sequence, create("f"), Bytes::new()).await.unwrap(), first);
        let FsReply::Entry { inode, .. } = first.0 else { panic!() };
        // An append, which would show a second time.
        let op = FsOp::Append { inode, kill_setid: false };
        let body = Bytes::from_static(b"once");
        let answer = client.ask_with(op.clone(), body.clone()).await.unwrap();
        let sequence = client.last_sequence(home);
        assert_eq!(client.ask_again(home, sequence, op.clone(), body.clone()).await.unwrap(), answer);
        rig.lose_power(CrashKeeps::Nothing).await;
        assert_eq!(client.ask_again(home, sequence, op.clone(), body.clone()).await.unwrap(), answer);
        assert_eq!(client.read(inode, 0, 100).await, b"once");
        // When the answer is known to have arrived, its number means nothing any more.
        client.append(inode, b"twice").await.unwrap();
        let late = client.ask_again(home, 1, create("f"), Bytes::new()).await;
        assert_eq!(errno(&late.unwrap_err()), 22);
        rig.fail_over(home).await;
        client.append(inode, b"thrice").await.unwrap();
        let late = client.ask_again(home, sequence, op, body).await;
        assert_eq!(errno(&late.unwrap_err()), 22);
        assert_eq!(client.read(inode, 0, 100).await, b"oncetwicethrice");
    });
}

#[test]
fn a_rename_that_is_asked_again_while_it_runs_happens_once() {
    run(101, |rig| async move {
        let client = rig.client(1);
        let home = rig.bucket_of(ROOT);
        client.create(ROOT, "a").await.unwrap();
        let op = FsOp::Rename {
            dir: ROOT,
            name: "a".into(),
            new_dir: ROOT,
            new_name: "b".into(),
            mode: RenameMode::Replace,
        };
        let sequence = client.last_sequence(home) + 1;
        let copies: Vec<_> = (0..3)
            .map(|_| {
                let (client, op) = (client.clone(), op.clone());
                rig.handle().spawn("copy", async move { client.ask_again(home, sequence, op, Bytes::new()).await })
            })
            .collect();
        for copy in copies {
            assert_eq!(copy.await.unwrap().unwrap().0, FsReply::Done);
        }
        assert_eq!(client.names(ROOT).await, ["b"]);
    });
}

/// Several clients at work while power fails again and again; what was acknowledged is there.
#[test]
fn everything_acknowledged_survives_power_failures() {
    for seed in 0..3 {
        run(110 + seed, |rig| async move {
            let client = rig.client(1);
            let mut files = Vec::new();
            for i in 0..4u8 {
                let dir = client.mkdir(ROOT, &format!("d{i}")).await.unwrap();
                files.push((dir, client.create(dir, "f").await.unwrap()));
            }
            let clients: Vec<_> = (2..6).map(|id| rig.client(id)).collect();
            for round in 0..3u8 {
                let workers: Vec<_> = (0..4u8)
                    .map(|i| {
                        let (dir, file) = files[i as usize];
                        let client = clients[usize::from(i)].clone();
                        rig.handle().spawn("worker", async move {
                            for step in 0..6u8 {
                                client.append(file, &[i * 16 + step; 1000]).await.unwrap();
                                let name = format!("r{round}s{step}");
                                client.create(dir, &name).await.unwrap();
                                client.rename((dir, &name), (dir, &format!("{name}x"))).await;
                            }
                        })
                    })
                    .collect();
                let nap = rig.handle().random_below(20_000);
                rig.handle().sleep(std::time::Duration::from_micros(nap)).await;
                rig.lose_power(CrashKeeps::Some { seed: nap }).await;
                for worker in workers {
                    worker.await.unwrap();
                }
                for (i, (dir, file)) in files.iter().enumerate() {
                    let names = client.names(*dir).await;
                    let data = client.read(*file, 0, 1 << 20).await;
                    assert_eq!(data.len(), 6000 * (usize::from(round) + 1));
                    for (at, chunk) in data.chunks(1000).enumerate() {
                        assert!(chunk.iter().all(|byte| *byte == i as u8 * 16 + (at % 6) as u8));
                    }
                    assert_eq!(names.len(), 1 + 6 * (usize::from(round) + 1), "{names:?}");
                    assert!(names.iter().all(|name| name == "f" || name.ends_with('x')));
                }
                for bucket in 0..BUCKETS {
                    assert!(rig.leader(BucketId(bucket)).bucket().failed().is_none());
                }
            }
        });
    }
}
