//! The service as a guest sees it: requests and answers, and frames of a stack that stands for the guest's.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::json;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{self, ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::wire::{HardwareAddress, IpCidr, Ipv4Address};

use super::http::{self, answer};
use super::stack::{CONNECTIONS, MAC};
use super::*;

fn mmds() -> Mmds {
    let mmds = Mmds::default();
    let document = json!({
        "latest": {"meta-data": {"ami-id": "ami-1", "number": 5, "list": ["a"]}, "user-data": "u"}
    });
    mmds.put(document).unwrap();
    mmds
}

fn behave(mmds: &Mmds, version: Version, imds_compat: bool) {
    mmds.configure(Behaviour {
        version,
        imds_compat,
    });
}

/// Status and body of the answer to one whole request.
#[track_caller]
fn ask(mmds: &Mmds, request: &str) -> (u16, String) {
    let found = answer(request.as_bytes(), mmds, Instant::now()).expect("a whole request");
    let text = String::from_utf8(found.bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let length = format!("Content-Length: {}", body.len());
    assert!(
        request.starts_with("HEAD") || head.contains(&length),
        "{head}"
    );
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        body.into(),
    )
}

fn get(mmds: &Mmds, path: &str, headers: &str) -> (u16, String) {
    ask(mmds, &format!("GET {path} HTTP/1.1\r\n{headers}\r\n"))
}

fn counter(mmds: &Mmds, name: &str) -> u64 {
    let all = mmds.counters();
    all.iter().find(|(known, _)| *known == name).unwrap().1
}

#[test]
fn version_1_wants_no_token_and_gives_them() {
    let mmds = mmds();
    assert_eq!(get(&mmds, "/latest/user-data", ""), (200, "u".into()));
    assert_eq!(counter(&mmds, "rx_no_token"), 1);
    let wrong = "X-metadata-token: nonsense\r\n";
    assert_eq!(get(&mmds, "/latest/user-data", wrong), (200, "u".into()));
    assert_eq!(counter(&mmds, "rx_invalid_token"), 1);
    let (status, token) = ask(
        &mmds,
        "PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 5\r\n\r\n",
    );
    assert_eq!(status, 200);
    let right = format!("X-metadata-token: {token}\r\n");
    assert_eq!(get(&mmds, "/latest/user-data", &right).0, 200);
    assert_eq!(counter(&mmds, "rx_invalid_token"), 1);
}

#[test]
fn version_2_wants_a_token() {
    let mmds = mmds();
    behave(&mmds, Version::V2, false);
    let (status, body) = get(&mmds, "/", "");
    assert_eq!(status, 401);
    assert!(body.starts_with("No MMDS token provided."), "{body}");
    let wrong = get(&mmds, "/", "X-metadata-token: nonsense\r\n");
    assert_eq!(wrong, (401, "MMDS token not valid.".into()));
    for (ttl, own) in [
        ("X-metadata-token-ttl-seconds", "X-metadata-token"),
        (
            "x-AWS-ec2-metadata-token-ttl-seconds",
            "X-aws-EC2-metadata-token",
        ),
    ] {
        let request = format!("PUT /latest//api/token HTTP/1.1\r\n{ttl}: 21600\r\n\r\n");
        let found = answer(request.as_bytes(), &mmds, Instant::now()).unwrap();
        let text = String::from_utf8(found.bytes).unwrap();
        assert!(text.contains(&format!("\r\n{ttl}: 21600\r\n")), "{text}");
        let (_, token) = text.split_once("\r\n\r\n").unwrap();
        let with = format!("{own}: {token}\r\n");
        assert_eq!(get(&mmds, "/latest/user-data", &with), (200, "u".into()));
    }
}

#[test]
fn what_is_wrong_with_asking_for_a_token() {
    let mmds = mmds();
    let ttl = "X-metadata-token-ttl-seconds";
    for (path, headers, status, words) in [
        (
            "/latest/api/token",
            String::new(),
            400,
            "time to live value not found",
        ),
        (
            "/latest/api/token",
            format!("{ttl}: 0\r\n"),
            400,
            "between 1 and 21600",
        ),
        (
            "/latest/api/token",
            format!("{ttl}: 21601\r\n"),
            400,
            "between 1 and 21600",
        ),
        (
            "/latest/api/token",
            format!("{ttl}: ten\r\n"),
            400,
            "Value:ten",
        ),
        (
            "/latest/api/token",
            format!("{ttl}: -1\r\n"),
            400,
            "Value:-1",
        ),
        (
            "/latest/api/token",
            format!("{ttl}: 4294967296\r\n"),
            400,
            "Value:4294967296",
        ),
        (
            "/latest/api/token",
            format!("{ttl}: 60\r\nx-forwarded-for: 10.0.0.1\r\n"),
            400,
            "X-Forwarded-For",
        ),
        (
            "/latest/api/token/",
            format!("{ttl}: 60\r\n"),
            404,
            "/latest/api/token/",
        ),
        (
            "/latest",
            format!("{ttl}: 60\r\n"),
            404,
            "Resource not found: /latest.",
        ),
    ] {
        for version in [Version::V1, Version::V2] {
            behave(&mmds, version, false);
            let found = ask(&mmds, &format!("PUT {path} HTTP/1.1\r\n{headers}\r\n"));
            assert_eq!(found.0, status, "{path} {headers} {found:?}");
            assert!(found.1.contains(words), "{path} {headers} {found:?}");
        }
    }
}

#[test]
fn formats_are_for_the_asking() {
    let mmds = mmds();
    let path = "/latest/meta-data";
    let text = (200, "ami-id\nlist\nnumber".into());
    let json = (200, r#"{"ami-id":"ami-1","list":["a"],"number":5}"#.into());
    for plain in [
        "",
        "Accept: text/plain\r\n",
        "Accept: */*\r\n",
        "Accept: plain/text\r\n",
    ] {
        assert_eq!(get(&mmds, path, plain), text, "{plain}");
    }
    for accept in [
        "application/json",
        "Application/JSON;q=1",
        "image/png, application/json",
    ] {
        assert_eq!(get(&mmds, path, &format!("accept: {accept}\r\n")), json);
    }
    let accept = "Accept: application/json\r\n";
    let head = |headers: &str| {
        let request = format!("GET {path} HTTP/1.1\r\n{headers}\r\n");
        let found = answer(request.as_bytes(), &mmds, Instant::now()).unwrap();
        String::from_utf8(found.bytes).unwrap()
    };
    assert!(head(accept).contains("\r\nContent-Type: application/json\r\n"));
    assert!(head("").contains("\r\nContent-Type: text/plain\r\n"));
    assert_eq!(get(&mmds, "/latest/meta-data/number", "").0, 501);
    assert_eq!(
        get(&mmds, "/latest/meta-data/number", accept),
        (200, "5".into())
    );
    behave(&mmds, Version::V1, true);
    assert_eq!(get(&mmds, path, accept), text);
    assert_eq!(get(&mmds, "/latest/meta-data/number", accept).0, 501);
}

#[test]
fn requests_that_are_answered_otherwise() {
    let mmds = mmds();
    for (request, status) in [
        ("GET /nothing HTTP/1.1\r\n\r\n", 404),
        (
            "GET http://169.254.169.254/latest/user-data HTTP/1.1\r\n\r\n",
            200,
        ),
        ("GET http://169.254.169.254 HTTP/1.1\r\n\r\n", 400),
        ("GET latest HTTP/1.1\r\n\r\n", 400),
        ("PATCH /latest HTTP/1.1\r\n\r\n", 405),
        ("DELETE /latest HTTP/1.1\r\n\r\n", 405),
        ("HEAD /latest HTTP/1.1\r\n\r\n", 405),
        ("GET /latest HTTP/2.0\r\n\r\n", 501),
        ("GET /latest HTTP/1.1\r\nNo colon\r\n\r\n", 400),
        ("GET\r\n\r\n", 400),
        ("\0\r\n\r\n", 400),
        (
            "GET /latest/user-data HTTP/1.1\r\nContent-Length: 2\r\n\r\nxx",
            200,
        ),
        ("GET /latest HTTP/1.1\r\nContent-Length: +2\r\n\r\nxx", 400),
        ("GET /latest HTTP/1.1\r\nContent-Length: 5000\r\n\r\n", 413),
        (
            "GET /latest HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
            413,
        ),
        (
            "GET /latest HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
            501,
        ),
    ] {
        assert_eq!(ask(&mmds, request).0, status, "{request}");
    }
    let (_, body) = ask(&mmds, "POST / HTTP/1.1\r\n\r\n");
    assert_eq!(body, "Not allowed HTTP method.");
    assert_eq!(
        get(&Mmds::default(), "/", "").0,
        404,
        "before there is a document"
    );
    let long = format!("GET /{} HTTP/1.1\r\n", "x".repeat(http::MOST));
    assert_eq!(ask(&mmds, &long).0, 413);
}

#[test]
fn a_connection_stays_where_both_want_it() {
    let mmds = mmds();
    let last = |request: &str| {
        let found = answer(request.as_bytes(), &mmds, Instant::now()).unwrap();
        let text = String::from_utf8(found.bytes).unwrap();
        assert_eq!(found.taken, request.len());
        assert_eq!(text.contains("Connection: close"), found.last, "{text}");
        assert_eq!(
            &text[..8],
            if request.contains("/1.0") {
                "HTTP/1.0"
            } else {
                "HTTP/1.1"
            }
        );
        found.last
    };
    assert!(!last("GET / HTTP/1.1\r\n\r\n"));
    assert!(last("GET / HTTP/1.1\r\nConnection: Close\r\n\r\n"));
    assert!(last("GET / HTTP/1.0\r\n\r\n"));
    assert!(!last("GET / HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n"));
    assert!(
        last("\r\n\r\nGET / HTTP/1.0\r\n\r\n"),
        "empty lines before it"
    );
}

proptest! {
    /// A request is answered in the same way wherever it is cut, and with what is behind it left alone.
    #[test]
    fn cuts_do_not_matter(behind in prop::collection::vec(any::<u8>(), 0..40)) {
        let mmds = mmds();
        let now = Instant::now();
        let request = b"GET /latest/user-data HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc";
        let whole = answer(request, &mmds, now).unwrap();
        for cut in 0..request.len() {
            prop_assert_eq!(answer(&request[..cut], &mmds, now), None);
        }
        let more = [&request[..], &behind].concat();
        prop_assert_eq!(answer(&more, &mmds, now), Some(whole));
    }

    #[test]
    fn any_bytes_are_harmless(bytes in prop::collection::vec(any::<u8>(), 0..200), start in 0_usize..4) {
        let mmds = mmds();
        let start = [&b""[..], b"GET / HTTP/1.1\r\n", b"PUT /latest/api/token HTTP/1.1\r\nX", b"GET /latest/"][start];
        let all = [start, &bytes, b"\r\n\r\n"].concat();
        if let Some(answer) = answer(&all, &mmds, Instant::now()) {
            prop_assert!((1..=all.len()).contains(&answer.taken));
            prop_assert!(answer.bytes.starts_with(b"HTTP/1."));
        }
    }
}

const ADDRESS_OF_GUEST: [u8; 4] = [10, 0, 0, 2];
const MAC_OF_GUEST: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// The guest's side: a stack with checksums that it looks at, and none that it makes.
struct Guest {
    stack: Stack,
    mmds: Mmds,
    link: Link,
    interface: Interface,
    sockets: SocketSet<'static>,
    start: Instant,
    /// Later than `start` by what the test says.
    now: Instant,
}

#[derive(Default)]
struct Link {
    received: VecDeque<Vec<u8>>,
    sent: VecDeque<Vec<u8>>,
}

struct Out<'a>(&'a mut Link);
struct In(Vec<u8>);

impl phy::RxToken for In {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, take: F) -> R {
        take(&self.0)
    }
}

impl phy::TxToken for Out<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, fill: F) -> R {
        let mut packet = vec![0; len];
        let result = fill(&mut packet);
        let frame = [&MAC[..], &MAC_OF_GUEST, &frame::TYPE_IPV4, &packet].concat();
        self.0.sent.push_back(frame);
        result
    }
}

impl Device for Link {
    type RxToken<'a> = In;
    type TxToken<'a> = Out<'a>;
    fn receive(&mut self, _now: smoltcp::time::Instant) -> Option<(In, Out<'_>)> {
        let packet = self.received.pop_front()?;
        Some((In(packet), Out(self)))
    }
    fn transmit(&mut self, _now: smoltcp::time::Instant) -> Option<Out<'_>> {
        Some(Out(self))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut checksum = ChecksumCapabilities::default();
        // The device is to complete it, says the header of the frame.
        checksum.tcp = phy::Checksum::Rx;
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = 1500;
        capabilities.checksum = checksum;
        capabilities
    }
}

impl Guest {
    fn new(mmds: &Mmds) -> Self {
        let mut link = Link::default();
        let config = Config::new(HardwareAddress::Ip);
        let mut interface = Interface::new(config, &mut link, smoltcp::time::Instant::ZERO);
        let own = Ipv4Address::from(ADDRESS_OF_GUEST);
        interface.update_ip_addrs(|all| all.push(IpCidr::new(own.into(), 24)).unwrap());
        interface.routes_mut().add_default_ipv4_route(own).unwrap();
        let now = Instant::now();
        Self {
            stack: Stack::new(mmds, ADDRESS).unwrap(),
            mmds: mmds.clone(),
            link,
            interface,
            sockets: SocketSet::new(Vec::new()),
            start: now,
            now,
        }
    }

    fn connect(&mut self) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; 100_000]);
        let mut socket = Socket::new(buffer(), buffer());
        let port = 20_000 + self.sockets.iter().count() as u16;
        let to = (Ipv4Address::from(ADDRESS.octets()), 80);
        socket.connect(self.interface.context(), to, port).unwrap();
        self.sockets.add(socket)
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Lets both go on until neither has a word; `lose` says which frames get lost.
    fn go_on(&mut self, mut lose: impl FnMut() -> bool) {
        for _ in 0..10_000 {
            let passed = self.now.duration_since(self.start).as_micros() as i64;
            let time = smoltcp::time::Instant::from_micros(passed);
            let _ = self.interface.poll(time, &mut self.link, &mut self.sockets);
            let mut moved = false;
            while let Some(frame) = self.link.sent.pop_front() {
                moved = true;
                if !lose() {
                    assert!(self.stack.is_for_it(&frame[..frame.len().min(START)]));
                    self.stack.take(&frame, self.now);
                }
            }
            while let Some(frame) = self.stack.next_frame(self.now) {
                moved = true;
                assert_eq!(frame[..6], MAC_OF_GUEST);
                assert_eq!(frame[6..14], [&MAC[..], &frame::TYPE_IPV4].concat());
                if !lose() {
                    self.link.received.push_back(frame[14..].to_vec());
                }
            }
            if !moved {
                return;
            }
        }
        panic!("it never ends");
    }

    fn read(&mut self, handle: SocketHandle) -> Vec<u8> {
        let mut bytes = vec![0; 100_000];
        let len = self.socket(handle).recv_slice(&mut bytes).unwrap_or(0);
        bytes.truncate(len);
        bytes
    }

    fn request(&mut self, handle: SocketHandle, request: &[u8]) -> Vec<u8> {
        self.socket(handle).send_slice(request).unwrap();
        self.go_on(|| false);
        self.read(handle)
    }
}

#[test]
fn many_requests_of_one_connection() {
    let mut guest = Guest::new(&mmds());
    let handle = guest.connect();
    guest.go_on(|| false);
    for _ in 0..200 {
        let answer = guest.request(handle, b"GET /latest/user-data HTTP/1.1\r\n\r\n");
        assert!(answer.ends_with(b"\r\n\r\nu"));
    }
    // Two at once, then one that ends it.
    let two = b"GET /latest/user-data HTTP/1.1\r\n\r\nGET / HTTP/1.0\r\n\r\n";
    let answer = String::from_utf8(guest.request(handle, two)).unwrap();
    assert_eq!(answer.matches(" 200 OK").count(), 2);
    assert!(answer.ends_with("latest/"));
    assert_eq!(guest.socket(handle).state(), State::CloseWait);
    guest.socket(handle).close();
    guest.go_on(|| false);
    assert_eq!(guest.stack.deadline(guest.now), None);
    assert_eq!(counter(&guest.mmds, "connections_created"), 1);
    assert_eq!(counter(&guest.mmds, "connections_destroyed"), 1);
}

#[test]
fn many_connections_one_after_the_other() {
    let mut guest = Guest::new(&mmds());
    for _ in 0..100 {
        let handle = guest.connect();
        guest.go_on(|| false);
        let request = b"GET /latest/user-data HTTP/1.1\r\nConnection: close\r\n\r\n";
        assert!(guest.request(handle, request).ends_with(b"\r\n\r\nu"));
        guest.socket(handle).close();
        guest.go_on(|| false);
    }
    let open =
        counter(&guest.mmds, "connections_created") - counter(&guest.mmds, "connections_destroyed");
    assert!(open <= CONNECTIONS as u64, "{open}");
}

#[test]
fn one_connection_too_many_replaces_the_one_that_was_silent_longest() {
    let mut guest = Guest::new(&mmds());
    let request = b"GET /latest/user-data HTTP/1.1\r\n\r\n";
    let handles: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let handle = guest.connect();
            guest.go_on(|| false);
            guest.now += Duration::from_millis(1);
            handle
        })
        .collect();
    // The first is not silent any more.
    assert!(!guest.request(handles[0], request).is_empty());
    guest.now += Duration::from_millis(1);
    let one_more = guest.connect();
    guest.go_on(|| false);
    assert!(!guest.request(one_more, request).is_empty());
    assert!(!guest.request(handles[0], request).is_empty());
    assert!(guest.request(handles[1], request).is_empty());
    assert_eq!(
        guest.socket(handles[1]).state(),
        State::Closed,
        "it was told"
    );
    assert_eq!(counter(&guest.mmds, "connections_destroyed"), 1);
}

#[test]
fn a_large_document_arrives_though_frames_get_lost() {
    let mmds = Mmds::default();
    let text = "0123456789".repeat(5_110);
    mmds.put(json!({ "x": text })).unwrap();
    let mut guest = Guest::new(&mmds);
    let handle = guest.connect();
    let mut number = 0_u32;
    let request = b"GET /x HTTP/1.1\r\n\r\n";
    let mut answer = Vec::new();
    for round in 0..500 {
        guest.go_on(|| {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            number >> 28 == 0
        });
        if round == 20 {
            guest.socket(handle).send_slice(request).unwrap();
        }
        answer.extend(guest.read(handle));
        guest.now += Duration::from_millis(100);
    }
    let answer = String::from_utf8(answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").expect("an answer");
    assert!(body == text, "{} bytes", body.len());
}

#[test]
fn silence_is_the_end_of_a_connection() {
    let mut guest = Guest::new(&mmds());
    let handle = guest.connect();
    guest.go_on(|| false);
    let deadline = guest.stack.deadline(guest.now).expect("a time");
    assert!(deadline > Duration::from_secs(50), "{deadline:?}");
    guest.now += Duration::from_secs(61);
    guest.go_on(|| false);
    assert_eq!(guest.socket(handle).state(), State::Closed);
    assert_eq!(guest.stack.deadline(guest.now), None);
}

#[test]
fn a_guest_that_takes_nothing_has_no_more_than_it_may_made_for_it() {
    let mmds = Mmds::default();
    mmds.put(json!({ "x": "y".repeat(50_000) })).unwrap();
    let mut guest = Guest::new(&mmds);
    let handles: Vec<_> = (0..CONNECTIONS).map(|_| guest.connect()).collect();
    guest.go_on(|| false);
    for handle in handles {
        let socket = guest.socket(handle);
        socket
            .send_slice(&b"GET /x HTTP/1.1\r\n\r\n".repeat(100))
            .unwrap();
    }
    let time = smoltcp::time::Instant::from_secs(1);
    let _ = guest
        .interface
        .poll(time, &mut guest.link, &mut guest.sockets);
    while let Some(frame) = guest.link.sent.pop_front() {
        guest.stack.take(&frame, guest.now);
    }
    let mut frames = 0;
    // What was made already; making goes on when this is taken.
    while guest.stack.has_frames() {
        let _ = guest.stack.next_frame(guest.now);
        frames += 1;
    }
    assert!((1..=64).contains(&frames), "{frames}");
    guest.stack.clear();
    assert!(guest.stack.next_frame(guest.now).is_none());
}

/// A frame of 64 KiB, as segmentation offload makes them, is no more than a long one.
#[test]
fn long_frames_and_others_are_harmless() {
    let mut guest = Guest::new(&mmds());
    let handle = guest.connect();
    guest.go_on(|| false);
    let socket = guest.socket(handle);
    socket.send_slice(&vec![b'x'; 60_000]).unwrap();
    guest.go_on(|| false);
    let answer = String::from_utf8(guest.read(handle)).unwrap();
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    let before = counter(&guest.mmds, "rx_accepted_unusual");
    let mut ping = [
        &MAC[..],
        &MAC_OF_GUEST,
        &frame::TYPE_IPV4,
        &[0x45, 0, 0, 20],
    ]
    .concat();
    ping.extend([0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 2, 169, 254, 169, 254]);
    guest.stack.take(&ping, guest.now);
    assert!(guest.stack.next_frame(guest.now).is_none());
    assert_eq!(counter(&guest.mmds, "rx_accepted_unusual"), before + 1);
}
