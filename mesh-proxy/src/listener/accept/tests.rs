//! Accepting over loopback: who gets a connection, what drain does to it.

use std::collections::HashMap;

use mesh_common::process::drain;

use super::*;

fn options(count: usize) -> Options {
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let app = "127.0.0.1:1".parse().unwrap();
    Options {
        inbound: vec![InboundPort { listen: any, app }; count],
        outbound: Some(any),
        propagation: Duration::ZERO,
        linger: Duration::ZERO,
        ..Options::default()
    }
}

#[tokio::test]
async fn says_what_is_wrong_with_an_address() {
    let taken = Listeners::bind(&options(1)).unwrap();
    let listen = taken.addresses().inbound[0];
    let bind = |listen: SocketAddr, app: SocketAddr| {
        let inbound = vec![InboundPort { listen, app }];
        Listeners::bind(&Options { inbound, ..Options::default() }).unwrap_err()
    };
    let app = "127.0.0.1:1".parse().unwrap();
    assert!(matches!(bind(listen, app), ListenError::Taken(address) if address == listen));
    assert!(matches!(bind(app, app), ListenError::Loop(_)));
    assert!(matches!(bind("192.0.2.1:0".parse().unwrap(), app), ListenError::NotLocal(_)));
}

#[tokio::test]
async fn connections_are_handed_out_in_turn() {
    let listeners = Listeners::bind(&options(1)).unwrap();
    let addresses = listeners.addresses().clone();
    let (acceptor, mut queues) = listeners.split(3);
    let (_trigger, guard) = drain();
    let clients = async {
        let mut clients = Vec::new();
        for turn in 0..9 {
            let to = if turn % 2 == 0 { addresses.inbound[0] } else { addresses.outbound.unwrap() };
            clients.push(tokio::net::TcpStream::connect(to).await.unwrap());
        }
        let mut per_worker = HashMap::new();
        for (index, Accepted { queue }) in queues.iter_mut().enumerate() {
            for _ in 0..3 {
                let handed = queue.recv().await.unwrap();
                assert!(handed.stream.nodelay().unwrap());
                assert!(SockRef::from(&handed.stream).keepalive().unwrap());
                *per_worker.entry(index).or_insert(0) += 1;
            }
        }
        per_worker
    };
    let per_worker = tokio::select! {
        () = acceptor.run(guard) => unreachable!("it accepts for ever"),
        per_worker = clients => per_worker,
    };
    assert_eq!(per_worker, HashMap::from([(0, 3), (1, 3), (2, 3)]));
}

#[tokio::test]
async fn draining_closes_inbound_and_keeps_outbound() {
    let listeners = Listeners::bind(&options(1)).unwrap();
    let addresses = listeners.addresses().clone();
    let (acceptor, mut queues) = listeners.split(1);
    let (trigger, guard) = drain();
    let under_way = guard.clone();
    let acceptor = tokio::spawn(acceptor.run(guard));
    trigger.start();
    while tokio::net::TcpStream::connect(addresses.inbound[0]).await.is_ok() {
        tokio::task::yield_now().await;
        queues[0].queue.try_recv().ok();
    }
    let _client = tokio::net::TcpStream::connect(addresses.outbound.unwrap()).await.unwrap();
    let mut next = queues[0].queue.recv().await;
    while matches!(next, Some(Handed { door: Door::Inbound(_), .. })) {
        next = queues[0].queue.recv().await;
    }
    assert!(matches!(next, Some(Handed { door: Door::Outbound, .. })));
    drop((next, under_way));
    assert!(trigger.drain(Duration::from_secs(60)).await, "the acceptor holds nothing up");
    acceptor.abort();
}

#[tokio::test(start_paused = true)]
async fn new_connections_are_taken_while_others_hear_of_the_drain() {
    let propagation = Duration::from_secs(5);
    let listeners = Listeners::bind(&Options { propagation, ..options(1) }).unwrap();
    let to = listeners.addresses().inbound[0];
    let (acceptor, _queues) = listeners.split(1);
    let (trigger, guard) = drain();
    let acceptor = tokio::spawn(acceptor.run(guard));
    trigger.start();
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(tokio::net::TcpStream::connect(to).await.is_ok(), "somebody may not know yet");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(tokio::net::TcpStream::connect(to).await.is_err());
    acceptor.abort();
}

#[tokio::test(start_paused = true)]
async fn the_end_waits_until_the_application_is_silent() {
    let linger = Duration::from_secs(2);
    for connected in [false, true] {
        let listeners = Listeners::bind(&Options { linger, ..options(0) }).unwrap();
        let to = listeners.addresses().outbound.unwrap();
        let (acceptor, mut queues) = listeners.split(1);
        let (trigger, guard) = drain();
        let acceptor = tokio::spawn(acceptor.run(guard));
        let client = tokio::net::TcpStream::connect(to).await.unwrap();
        let held = queues[0].queue.recv().await.unwrap();
        let held = Some(held).filter(|_| connected);
        // That it was silent before counts for nothing.
        tokio::time::sleep(Duration::from_secs(60)).await;
        let begun = Instant::now();
        let ending = tokio::spawn(trigger.drain(Duration::from_secs(60)));
        if connected {
            tokio::time::sleep(Duration::from_secs(10)).await;
            assert!(!ending.is_finished(), "it has a connection");
        }
        let silent = begun.elapsed();
        drop((held, client));
        assert!(ending.await.unwrap());
        let lingered = begun.elapsed() - silent;
        assert!(lingered + LOOK >= linger && lingered < linger * 2, "connected: {connected}, {lingered:?}");
        acceptor.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_was_accepted_is_handed_over_and_holds_the_drain_up() {
    let listeners = Listeners::bind(&Options { outbound: None, ..options(1) }).unwrap();
    let to = listeners.addresses().inbound[0];
    let (acceptor, mut queues) = listeners.split_bounded(1, 1);
    let permits = Arc::clone(&acceptor.hand_out.permits);
    let all = permits.available_permits();
    let (trigger, guard) = drain();
    let watch = guard.watch();
    let acceptor = tokio::spawn(acceptor.run(guard));
    // The queue has place for one: the other is accepted, and waits for its turn.
    let _clients = [
        tokio::net::TcpStream::connect(to).await.unwrap(),
        tokio::net::TcpStream::connect(to).await.unwrap(),
    ];
    while permits.available_permits() > all - 2 {
        tokio::task::yield_now().await;
    }
    trigger.start();
    tokio::time::sleep(Duration::from_secs(1)).await; // past the window, which is of no length here
    let mut handed = Vec::new();
    for _ in 0..2 {
        let next = tokio::time::timeout(Duration::from_secs(10), queues[0].queue.recv());
        handed.push(next.await.expect("it was accepted").unwrap());
    }
    while tokio::net::TcpStream::connect(to).await.is_ok() {
        tokio::task::yield_now().await;
        handed.extend(queues[0].queue.try_recv());
    }
    assert!(watch.guard().is_some(), "whoever was accepted holds the drain up");
    drop(handed);
    assert!(watch.guard().is_none());
    acceptor.abort();
}

#[tokio::test]
async fn connections_above_the_limit_are_closed() {
    use tokio::io::AsyncReadExt;
    let listeners = Listeners::bind(&Options { max_connections: 1, ..options(1) }).unwrap();
    let to = listeners.addresses().inbound[0];
    let (acceptor, mut queues) = listeners.split(1);
    let (_trigger, guard) = drain();
    let clients = async {
        let _first = tokio::net::TcpStream::connect(to).await.unwrap();
        let held = queues[0].queue.recv().await.unwrap();
        let mut second = tokio::net::TcpStream::connect(to).await.unwrap();
        assert_eq!(second.read(&mut [0]).await.unwrap(), 0);
        drop(held);
        let _third = tokio::net::TcpStream::connect(to).await.unwrap();
        assert!(queues[0].queue.recv().await.is_some());
    };
    tokio::select! {
        () = acceptor.run(guard) => unreachable!("it accepts for ever"),
        () = clients => {}
    }
}
