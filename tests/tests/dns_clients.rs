//! Clients over TCP that read nothing, say nothing more, or talk nonsense; and what upstreams see of large answers.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use tests::dns::{DnsHost, Upstream};
use tests::{Ns, tool, wait_for};

const AT: (&str, u16) = ("10.94.1.1", 53);

/// A network whose name `big` has very many addresses.
fn lab() -> String {
    let mut toml = String::from(
        "name = \"lab\"\n[domain]\nname = \"lab.test\"\n[[subnet]]\naddress = \"10.94.1.1/24\"\n",
    );
    for i in 0..200 {
        toml.push_str(&format!(
            "[[dns.host]]\nip = \"10.95.1.{i}\"\nnames = [\"big\"]\n"
        ));
    }
    toml
}

fn host(resolv_conf: &str) -> anyhow::Result<(DnsHost, Ns)> {
    let mut host = DnsHost::new("dnshost", resolv_conf)?;
    assert_eq!(host.network(&lab())?, []);
    let guest = host.guest("br1", "guest", "10.94.1.50/24")?;
    Ok((host, guest))
}

/// A query for addresses, with its length in front.
fn question(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).expect("a short label"));
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    let len = u16::try_from(message.len()).expect("a short message");
    [&len.to_be_bytes()[..], &message].concat()
}

/// A connection of the guest's.
fn connect(guest: &Ns) -> anyhow::Result<TcpStream> {
    let socket = guest.enter(|| TcpStream::connect(AT))??;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    Ok(socket)
}

/// The next answer's number and how many records it has.
fn answer(socket: &mut TcpStream) -> anyhow::Result<(u16, u16)> {
    let mut len = [0; 2];
    socket.read_exact(&mut len)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
    socket.read_exact(&mut message)?;
    let word = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
    Ok((word(0), word(6)))
}

fn is_over(socket: &mut TcpStream) -> bool {
    match socket.read(&mut [0]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(e) => e.kind() == ErrorKind::ConnectionReset,
    }
}

/// Not cut off, and not served at others' cost: it is not read any further until it reads.
#[test]
fn a_client_that_does_not_read_is_not_read() -> anyhow::Result<()> {
    if !tool::ready("dns_clients::a_client_that_does_not_read_is_not_read", &[]) {
        return Ok(());
    }
    let (host, guest) = host("")?;
    let mut greedy = connect(&guest)?;
    greedy.set_nonblocking(true)?;
    let one = question(7, "big.lab.test");
    let many = one.repeat(500);
    let (mut sent, end) = (0, Instant::now() + Duration::from_secs(60));
    let mut moved = Instant::now();
    // Until nothing has moved for a while: all that is between us is full.
    while moved.elapsed() < Duration::from_secs(1) {
        assert!(Instant::now() < end, "it takes and takes: {sent} bytes");
        match greedy.write(&many[sent % one.len()..]) {
            Ok(count) => {
                sent += count;
                moved = Instant::now();
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(e) => return Err(e.into()),
        }
    }
    // Others are served meanwhile.
    let mut other = connect(&guest)?;
    other.write_all(&question(9, "big.lab.test"))?;
    assert_eq!(answer(&mut other)?, (9, 200));
    let asked = host.stats().total.local;
    let whole = sent / one.len();
    assert!(
        asked < u64::try_from(whole)?,
        "what is not taken is not answered"
    );
    greedy.set_nonblocking(false)?;
    for _ in 0..whole {
        assert_eq!(answer(&mut greedy)?, (7, 200));
    }
    Ok(())
}

#[test]
fn rfc7766_6_2_3_who_has_said_all_is_told_all() -> anyhow::Result<()> {
    let test = "dns_clients::rfc7766_6_2_3_who_has_said_all_is_told_all";
    if !tool::ready(test, &["dnsmasq"]) {
        return Ok(());
    }
    let (host, guest) = host("nameserver 10.94.70.53\n")?;
    let records: Vec<String> = (0..40)
        .map(|i| format!("--host-record=n{i}.example,192.0.2.{i}"))
        .collect();
    let records: Vec<&str> = records.iter().map(String::as_str).collect();
    let _upstream = Upstream::new(&host, "up", "10.94.70.53", &records)?;
    let mut client = connect(&guest)?;
    let all: Vec<Vec<u8>> = (0..40)
        .map(|i| question(i, &format!("n{i}.example")))
        .collect();
    client.write_all(&all.concat())?;
    client.shutdown(Shutdown::Write)?;
    let mut told = (0..40)
        .map(|_| answer(&mut client))
        .collect::<anyhow::Result<Vec<_>>>()?;
    told.sort_unstable();
    let wanted: Vec<_> = (0..40).map(|i| (i, 1)).collect();
    assert_eq!(told, wanted);
    assert!(is_over(&mut client), "and then it is over");
    Ok(())
}

/// What is known is not kept back by what is not.
#[test]
fn rfc7766_6_2_1_1_answers_come_as_they_get_ready() -> anyhow::Result<()> {
    let test = "dns_clients::rfc7766_6_2_1_1_answers_come_as_they_get_ready";
    if !tool::ready(test, &[]) {
        return Ok(());
    }
    let (host, guest) = host("nameserver 10.94.70.53\n")?;
    let beyond = Ns::new("beyond")?;
    host.ns.link("ubeyond", &beyond, "eth0")?;
    host.ns.ip("addr add 10.94.70.254/24 dev ubeyond")?;
    beyond.ip("addr add 10.94.70.53/24 dev eth0")?;
    let upstream = beyond.enter(|| UdpSocket::bind("10.94.70.53:53"))??;
    upstream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut client = connect(&guest)?;
    client.write_all(&[question(1, "far.example"), question(2, "big.lab.test")].concat())?;
    // It has been asked, and takes its time.
    let mut asked = [0; 512];
    let (len, from) = upstream.recv_from(&mut asked)?;
    assert_eq!(answer(&mut client)?, (2, 200));
    // The same back as an answer: there is the name, but no address.
    asked[2..4].copy_from_slice(&[0x81, 0x80]);
    upstream.send_to(&asked[..len], from)?;
    assert_eq!(answer(&mut client)?, (1, 0));
    Ok(())
}

#[test]
fn who_talks_nonsense_is_cut_off() -> anyhow::Result<()> {
    if !tool::ready("dns_clients::who_talks_nonsense_is_cut_off", &[]) {
        return Ok(());
    }
    let (_host, guest) = host("")?;
    // An answer, and what is too short to be anything.
    let mut answered = question(7, "big.lab.test");
    answered[4] |= 0x80;
    for nonsense in [answered, vec![0, 1, 9]] {
        let mut client = connect(&guest)?;
        client.write_all(&nonsense)?;
        assert!(is_over(&mut client), "{nonsense:?}");
    }
    Ok(())
}

/// A client that asks nothing any more does not keep its place, nor does one that never gets to the end of its
/// question: single bytes are no life.
#[test]
fn rfc7766_6_2_3_who_is_idle_is_closed() -> anyhow::Result<()> {
    if !tool::ready("dns_clients::rfc7766_6_2_3_who_is_idle_is_closed", &[]) {
        return Ok(());
    }
    let (_host, guest) = host("")?;
    let mut idle = connect(&guest)?;
    idle.set_read_timeout(Some(Duration::from_secs(30)))?;
    idle.write_all(&question(3, "big.lab.test"))?;
    assert_eq!(answer(&mut idle)?, (3, 200));
    let mut slow = connect(&guest)?;
    slow.write_all(&[0, 200])?;
    wait_for(
        "the end of a slow client",
        Duration::from_secs(30),
        || match slow.write_all(&[1]) {
            Ok(()) => Err("it goes on"),
            Err(_) => Ok(()),
        },
    )?;
    assert!(is_over(&mut idle), "it was closed, and told nothing more");
    Ok(())
}

/// RFC 7766 section 6.2.2: answers that did not fit come over one connection to their upstream, not one each.
#[test]
fn rfc7766_6_2_2_large_answers_share_a_connection() -> anyhow::Result<()> {
    let test = "dns_clients::rfc7766_6_2_2_large_answers_share_a_connection";
    if !tool::ready(test, &["dnsmasq", "ss"]) {
        return Ok(());
    }
    let (host, guest) = host("nameserver 10.94.70.53\n")?;
    let records: Vec<String> = (0..2_000)
        .map(|i| {
            format!(
                "--host-record=n{}.example,192.0.{}.{}",
                i % 20,
                2 + i / 250,
                i % 250
            )
        })
        .collect();
    let records: Vec<&str> = records.iter().map(String::as_str).collect();
    let upstream = Upstream::new(&host, "up", "10.94.70.53", &records)?;
    let mut client = connect(&guest)?;
    let all: Vec<Vec<u8>> = (0..20)
        .map(|i| question(i, &format!("n{i}.example")))
        .collect();
    client.write_all(&all.concat())?;
    for _ in 0..20 {
        assert_eq!(answer(&mut client)?.1, 100);
    }
    let open = upstream.ns.sh("ss -Htn state established sport = 53")?;
    assert_eq!(open.lines().count(), 1, "{open}");
    Ok(())
}

/// A guest that makes its addresses has as many as it likes, and one guest's share of connections.
#[test]
fn a_guest_of_many_addresses_leaves_connections_to_others() -> anyhow::Result<()> {
    let test = "dns_clients::a_guest_of_many_addresses_leaves_connections_to_others";
    if !tool::ready(test, &[]) {
        return Ok(());
    }
    let mut host = DnsHost::new("dnshost", "")?;
    let six = "[[subnet]]\naddress = \"fd94:1::1/64\"\n";
    assert_eq!(host.network(&(lab() + six))?, []);
    let (greedy, other) = (
        host.guest("br1", "greedy", "10.94.1.50/24")?,
        host.guest("br1", "other", "10.94.1.51/24")?,
    );
    let mut held = Vec::new();
    for last in 0..13 {
        let own = format!("fd94:1::1:{last:x}");
        greedy.ip(&format!("addr add {own}/64 dev eth0 nodad"))?;
        let own = SocketAddr::new(own.parse()?, 0);
        for _ in 0..64 {
            let socket = greedy.enter(|| {
                let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
                socket.bind(&own.into())?;
                let to: SocketAddr = "[fd94:1::1]:53".parse().expect("an address");
                socket.connect(&to.into()).map(|()| socket)
            })??;
            held.push(TcpStream::from(socket));
        }
    }
    let mut served = 0;
    for socket in &mut held {
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        let asked = socket.write_all(&question(7, "big.lab.test"));
        served += usize::from(asked.is_ok() && answer(socket).is_ok());
    }
    assert_eq!(served, 64);
    let mut socket = connect(&other)?;
    socket.write_all(&question(9, "big.lab.test"))?;
    assert_eq!(answer(&mut socket)?, (9, 200));
    Ok(())
}
