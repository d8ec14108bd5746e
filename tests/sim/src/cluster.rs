//! From blank drives to a filesystem with clients.

use crate::world::World;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use weft_client::{Client, ConnectError, ConnectOptions};
use weft_placement::{FormRequest, NewDrive, NewNode};
use weft_transport::rpc::Network;
use weft_wire::Uuid;
use weft_wire::control::{Answer, Command, Description};
use weft_wire::hash::Secret;
use weft_wire::map::Protection;

/// In virtual time. A calm cluster needs far less.
const STEP_MAX: Duration = Duration::from_secs(60);
const SETTLE: Duration = Duration::from_secs(1);

/// What a node that is in no cluster brings.
pub fn new_node(found: &Description) -> NewNode {
    let drives = found.drives.iter().map(|drive| NewDrive {
        uuid: drive.uuid,
        core: drive.core,
        capacity_bytes: drive.capacity_bytes,
        zone_bytes: drive.zone_bytes,
        zones: drive.zones,
    });
    NewNode {
        name: found.name.clone(),
        domain: found.domain.clone(),
        cores: found.cores.clone(),
        control: found.control,
        drives: drives.collect(),
    }
}

impl World {
    /// Makes one cluster of all nodes, with as many buckets as 2 to the power of `bucket_bits`.
    pub fn form(&mut self, protection: Protection, bucket_bits: u8) -> Result<(), String> {
        // Drives are looked at first.
        self.run_for(SETTLE);
        let mut nodes = Vec::new();
        for index in 0..self.nodes.len() {
            let answer = self.command(index, STEP_MAX, Command::Describe);
            let Ok(Answer::Description(found)) = answer else { return Err(format!("node {index}: {answer:?}")) };
            nodes.push(new_node(&found));
        }
        let mut secret = [0; 16];
        for half in secret.chunks_exact_mut(8) {
            half.copy_from_slice(&self.random.next_u64().to_le_bytes());
        }
        let request = FormRequest {
            cluster: Uuid(u128::from(self.random.next_u64()) << 64 | u128::from(self.random.next_u64())),
            name: "sim".into(),
            secret: Secret(secret),
            protection,
            nodes,
            bucket_bits: Some(bucket_bits),
        };
        let map = weft_placement::form(&request).map_err(|refusal| refusal.to_string())?;
        let answers: Rc<RefCell<Vec<Answer>>> = Rc::default();
        for machine in &mut self.nodes {
            let Some(node) = machine.node() else { continue };
            let (answers, command) = (Rc::clone(&answers), Command::Form { map: Box::new(map.clone()) });
            let form = async move {
                let answer = node.command(command).await;
                answers.borrow_mut().push(answer);
            };
            if let Some(process) = machine.process() {
                process.handle().spawn("form", form).detach();
                process.poke();
            }
        }
        let all = self.nodes.len();
        let formed = self.run_while(STEP_MAX, |_| answers.borrow().len() == all);
        match answers.borrow().iter().find(|answer| !matches!(answer, Answer::Done)) {
            Some(answer) => Err(format!("forming: {answer:?}")),
            None => formed.map_err(|_| "forming takes too long".into()),
        }
    }

    pub fn create_filesystem(&mut self, name: &str) -> Result<(), String> {
        let command = Command::CreateFilesystem { name: name.into(), size_bytes: 0 };
        match self.command(0, STEP_MAX, command) {
            Ok(Answer::Done) => Ok(()),
            answer => Err(format!("creating filesystem {name}: {answer:?}")),
        }
    }

    /// A new client process with this filesystem. Answers its index, too.
    pub fn connect(&mut self, fs_name: &str) -> Result<(usize, Rc<Client>), String> {
        let index = self.add_client();
        let connecting = self.connecting(index, fs_name)?;
        match self.block_on_client(index, STEP_MAX, connecting) {
            Ok(Ok(client)) => Ok((index, client)),
            Ok(Err(error)) => Err(format!("client {index} can't connect: {error}")),
            Err(_) => Err(format!("client {index} can't connect in time")),
        }
    }

    /// What a client's process does to become a client.
    pub fn connecting(
        &self,
        index: usize,
        fs_name: &str,
    ) -> Result<impl Future<Output = Result<Rc<Client>, ConnectError>> + use<>, String> {
        let process = self.clients.get(index).ok_or("no such client")?;
        let handle = process.handle();
        let rpc: Rc<dyn Network> = process.socket().bind(None)?;
        let options = ConnectOptions {
            addresses: self.nodes.iter().map(|node| node.addr()).collect(),
            fs_name: fs_name.into(),
            host: format!("client{index}"),
            fail_after: None,
        };
        Ok(Client::connect(rpc, handle, options))
    }
}
