//! Machines without a system: TFTP as clients and as others speak it, and guests that boot by iPXE and by UEFI.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tests::{Machine, Netd, Ns, World, tool, wait_for};

const TOOLS: [&str; 4] = ["nft", "busybox", "dig", "dnsmasq"];
const TFTP: &str = "10.50.0.1:69";
const PATIENCE: Duration = Duration::from_secs(5);

/// A network that boots guests from a folder of its own, as strict about the host as it can be.
fn lab(world: &World) -> anyhow::Result<(Netd<'_>, PathBuf)> {
    let netd = Netd::start(&world.host)?;
    let folder = netd.scratch().join("tftp");
    fs::create_dir(&folder)?;
    netd.apply(&format!(
        r#"
name = "lab"
host_access = "services"
[[subnet]]
address = "10.50.0.1/24"
[subnet.dhcp.boot]
tftp = "{}"
file = "hello.0"
[[subnet.dhcp.boot.rule]]
user_class = "iPXE"
file = "boot.ipxe"
"#,
        folder.display()
    ))?;
    Ok((netd, folder))
}

/// A guest's socket, and what comes back to a packet from it.
struct Client(UdpSocket);

impl Client {
    fn of(ns: &Ns) -> anyhow::Result<Self> {
        let socket = ns.enter(|| UdpSocket::bind("0.0.0.0:0"))??;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }

    fn ask(&self, packet: &[u8]) -> anyhow::Result<Vec<u8>> {
        self.0.send_to(packet, TFTP)?;
        self.hear()
    }

    /// A file of one block, taken as it should be.
    fn fetch(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        let request = format!("\0\x01{name}\0octet\0");
        self.0.send_to(request.as_bytes(), TFTP)?;
        let mut reply = [0; 516];
        let (len, from) = self.0.recv_from(&mut reply)?;
        self.0.send_to(b"\0\x04\0\x01", from)?;
        let data = reply[..len].strip_prefix(b"\0\x03\0\x01");
        Ok(data.map(<[u8]>::to_vec).unwrap_or_default())
    }

    fn hear(&self) -> anyhow::Result<Vec<u8>> {
        let mut reply = [0; 2048];
        let (len, _) = self.0.recv_from(&mut reply)?;
        Ok(reply[..len].to_vec())
    }

    fn read(&self, name: &str, options: &str) -> anyhow::Result<Vec<u8>> {
        let request = format!("\0\x01{name}\0octet\0{options}");
        self.ask(request.as_bytes())
    }
}

#[test]
fn tftp_serves_files_of_any_size_and_nothing_else() -> anyhow::Result<()> {
    let name = "boot::tftp_serves_files_of_any_size_and_nothing_else";
    if !tool::ready(name, &[&TOOLS[..], &["tftp"]].concat()) {
        return Ok(());
    }
    let world = World::new()?;
    let (netd, folder) = lab(&world)?;
    let alice = Machine::plug(&netd, "lab", "alice", &[])?;
    alice.lease()?;
    fs::create_dir(folder.join("sub"))?;
    // Whole blocks, a part of one, none; and one that has more blocks than numbers.
    for size in [0, 1, 512, 1024, 100_001, 512 * 66_000] {
        let bytes: Vec<u8> = (0..size).map(|n: usize| (n / 7).to_le_bytes()[0]).collect();
        fs::write(folder.join("sub/file"), &bytes)?;
        let got = alice.ns.scratch().join("got");
        let _ = fs::remove_file(&got);
        alice.ns.sh(&format!(
            "tftp -m octet 10.50.0.1 -c get sub/file {}",
            got.display()
        ))?;
        assert!(fs::read(&got)? == bytes, "{size} bytes");
    }
    // The mode that this client uses by itself: lines end in their own way on the wire and here.
    let got = alice.ns.scratch().join("text");
    fs::write(folder.join("text"), "one\ntwo\r\n")?;
    let get = format!("tftp 10.50.0.1 -c get text {}", got.display());
    alice.ns.sh(&get)?;
    assert_eq!(fs::read(&got)?, b"one\ntwo\r\n");
    let client = Client::of(&alice.ns)?;
    let asked = client.ask(b"\0\x01text\0netascii\0tsize\x000\0")?;
    assert_eq!(asked, b"\0\x06tsize\x0012\0");
    fs::write(folder.join("long"), vec![b'\n'; (1 << 20) + 1])?;
    assert!(
        client
            .ask(b"\0\x01long\0netascii\0")?
            .starts_with(b"\0\x05\0\0too long")
    );
    fs::write(folder.join("small"), "content")?;
    assert_eq!(client.read("small", "")?, b"\0\x03\0\x01content");
    assert_eq!(
        client.read("/small", "tsize\x000\0blksize\x0065464\0windowsize\x004\0")?,
        b"\0\x06blksize\x001468\0tsize\x007\0windowsize\x004\0"
    );
    Ok(())
}

#[test]
fn tftp_gives_nothing_away() -> anyhow::Result<()> {
    if !tool::ready("boot::tftp_gives_nothing_away", &TOOLS) {
        return Ok(());
    }
    let world = World::new()?;
    let (netd, folder) = lab(&world)?;
    let alice = Machine::plug(&netd, "lab", "alice", &[])?;
    alice.lease()?;
    let secret = netd.scratch().write("secret", "secret")?;
    fs::create_dir(folder.join("sub"))?;
    fs::write(folder.join("small"), "content")?;
    fs::write(folder.join("private"), "secret")?;
    fs::set_permissions(folder.join("private"), fs::Permissions::from_mode(0o600))?;
    symlink(&secret, folder.join("out"))?;
    symlink("../../secret", folder.join("sub/up"))?;
    symlink("../small", folder.join("sub/fine"))?;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        folder.join("pipe"),
        rustix::fs::FileType::Fifo,
        0o644.into(),
        0,
    )?;

    let client = Client::of(&alice.ns)?;
    for name in [
        "../secret",
        "sub/../../secret",
        "..\\secret",
        "out",
        "sub/up",
        "private",
        "pipe",
        "sub",
        ".",
        "/etc/passwd",
        "/proc/self/environ",
        "none",
    ] {
        let said = client.read(name, "")?;
        assert_eq!(said, b"\0\x05\0\x01no such file\0", "{name}");
    }
    assert_eq!(client.read("sub/fine", "")?, b"\0\x03\0\x01content");
    let fresh = Client::of(&alice.ns)?;
    let refused = fresh.ask(b"\0\x02small\0octet\0")?;
    assert_eq!(refused[..4], [0, 5, 0, 2]);
    assert_eq!(fs::read(folder.join("small"))?, b"content");
    // Whatever is said, the server stays.
    for n in 0..=255u8 {
        fresh.0.send_to(&[0, n % 8, n, 0, n], TFTP)?;
        fresh.0.send_to(&vec![n; 1400], TFTP)?;
    }
    // One client has so many transfers and no more; another is served meanwhile.
    let hogs: Vec<Client> = (0..12)
        .map(|_| Client::of(&alice.ns))
        .collect::<Result<_, _>>()?;
    let mut busy = 0;
    for hog in &hogs {
        busy += usize::from(hog.read("small", "")?.starts_with(b"\0\x05"));
    }
    assert!(busy >= 4, "{busy} were refused");
    let bob = Machine::plug(&netd, "lab", "bob", &[])?;
    bob.lease()?;
    let other = Client::of(&bob.ns)?;
    assert_eq!(other.read("small", "")?, b"\0\x03\0\x01content");
    // Without an answer the same block comes again.
    assert_eq!(other.hear()?, b"\0\x03\0\x01content");
    Ok(())
}

#[test]
fn a_folder_may_be_another_one_at_the_next_request() -> anyhow::Result<()> {
    if !tool::ready(
        "boot::a_folder_may_be_another_one_at_the_next_request",
        &TOOLS,
    ) {
        return Ok(());
    }
    let world = World::new()?;
    let (netd, folder) = lab(&world)?;
    let alice = Machine::plug(&netd, "lab", "alice", &[])?;
    alice.lease()?;
    let home = netd.scratch().join("versions");
    let current = home.join("current");
    for version in ["one", "two"] {
        fs::create_dir_all(home.join(version))?;
        fs::write(home.join(version).join("which"), version)?;
    }
    let says = |word: &str| -> anyhow::Result<()> {
        let said = Client::of(&alice.ns)?.fetch("which")?;
        anyhow::ensure!(said == word.as_bytes(), "{said:?}");
        Ok(())
    };
    // By the document: the very next request is answered from there.
    let document = netd.vnet(&["network", "show", "lab", "-o", "toml"])?;
    let of = |to: &Path| document.replace(&folder.display().to_string(), &to.display().to_string());
    for version in ["one", "two", "one", "two", "one", "two"] {
        netd.apply(&of(&home.join(version)))?;
        says(version)?;
    }
    let warnings = netd.json(&["status"])?["warnings"].to_string();
    assert_eq!(warnings, "[]");
    // By a link that leads elsewhere, and by a folder that is made anew.
    for version in ["one", "two"] {
        let _ = fs::remove_file(&current);
        symlink(version, &current)?;
        if version == "one" {
            netd.apply(&of(&current))?;
        }
        says(version)?;
    }
    fs::remove_dir_all(home.join("two"))?;
    let said = Client::of(&alice.ns)?.read("which", "")?;
    assert!(
        said.starts_with(b"\0\x05\0\0the server's folder"),
        "{said:?}"
    );
    fs::create_dir(home.join("two"))?;
    fs::write(home.join("two/which"), "three")?;
    says("three")?;
    // A server that ends gives its port back at once.
    for _ in 0..3 {
        netd.apply(&of(&current).replace("tftp = ", "# "))?;
        netd.apply(&of(&current))?;
        says("three")?;
    }
    assert!(!netd.log().contains("no TFTP"), "{}", netd.log());
    Ok(())
}

/// A boot sector that says a word on the serial port: what it prints was loaded and run.
fn program(says: &str) -> Vec<u8> {
    let mut code = vec![
        0x31, 0xc0, // xor ax, ax
        0x8e, 0xd8, // mov ds, ax
        0xfc, // cld
        0xbe, 0x16, 0x7c, // mov si, the text
        0xba, 0xf8, 0x03, // mov dx, the first serial port
        0xac, // lodsb
        0x84, 0xc0, // test al, al
        0x74, 0x03, // jz, to the end
        0xee, // out dx, al
        0xeb, 0xf8, // jmp, to lodsb
        0xf4, // hlt
        0xeb, 0xfd, // jmp, to hlt
    ];
    code.extend_from_slice(says.as_bytes());
    code.resize(20_000, 0);
    code
}

/// Waits until what QEMU boots says its word.
fn boots(netd: &Netd, argv: &[&str], serial: &Path, word: &str) -> anyhow::Result<()> {
    let qemu = netd.ns().spawn(argv)?;
    wait_for("the program's word", Duration::from_secs(180), || {
        let said = fs::read(serial).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).into_owned();
        anyhow::ensure!(
            said.contains(word),
            "{said}\n{}\n{}",
            qemu.log(),
            netd.log()
        );
        Ok(())
    })
}

#[test]
fn a_guest_boots_by_ipxe() -> anyhow::Result<()> {
    let name = "boot::a_guest_boots_by_ipxe";
    if !tool::ready(name, &[&TOOLS[..], &["qemu-system-x86_64"]].concat()) {
        return Ok(());
    }
    let world = World::new()?;
    let (netd, folder) = lab(&world)?;
    // iPXE of the card's ROM is told the script, which loads the program.
    fs::write(folder.join("boot.ipxe"), "#!ipxe\nchain stage.0\n")?;
    fs::write(folder.join("stage.0"), program("booted from netd\n"))?;
    let line = netd.vnet(&["port", "attach", "lab", "diskless", "-o", "qemu"])?;
    let serial = world.host.scratch().join("serial");
    let fixed =
        "-M q35 -accel tcg -m 128 -nodefaults -no-user-config -display none -no-reboot -boot n";
    let chardev = format!("file:{}", serial.display());
    let mut argv: Vec<&str> = vec!["qemu-system-x86_64"];
    argv.extend(fixed.split(' '));
    argv.extend(["-serial", &chardev]);
    argv.extend(line.split_whitespace());
    boots(&netd, &argv, &serial, "booted from netd")?;
    let lease = netd.json(&["lease", "show", "lab", "diskless"])?;
    assert!(
        lease["address"]
            .as_str()
            .is_some_and(|a| a.starts_with("10.50.0.")),
        "{lease}"
    );
    Ok(())
}

/// The same as a UEFI application: one section of a PE image that is linked to no address.
fn uefi_program(says: &str) -> Vec<u8> {
    let mut image = vec![0; 0x200];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &[0x40]);
    // x86-64, one section, 240 bytes of optional header; executable, may lie anywhere.
    put(0x40, b"PE\0\0\x64\x86\x01");
    put(0x54, &[0xf0, 0, 0x22, 0]);
    put(0x58, &[0x0b, 0x02]);
    let words: [(usize, u32); 11] = [
        (0x5c, 0x1000), // code
        (0x68, 0x1000), // where it begins to run
        (0x6c, 0x1000), // and where it lies
        (0x78, 0x1000), // alignment in memory
        (0x7c, 0x200),  // and in the file
        (0x90, 0x2000), // all of it
        (0x94, 0x200),  // its headers
        (0x9c, 10),     // for UEFI to run
        (0xc4, 16),     // empty directories
        (0x150, 0x1000),
        (0x154, 0x1000),
    ];
    for (at, word) in words {
        put(at, &word.to_le_bytes());
    }
    put(0x148, b".text");
    put(0x159, &[0x02]);
    put(0x15d, &[0x02]);
    put(0x16c, &[0x20, 0, 0, 0x60]);
    image.extend_from_slice(&[
        0x48, 0x8d, 0x35, 0x10, 0, 0, 0, // lea rsi, the text
        0x66, 0xba, 0xf8, 0x03, // mov dx, the first serial port
        0xfc, // cld
        0xac, // lodsb
        0x84, 0xc0, // test al, al
        0x74, 0x03, // jz, to the end
        0xee, // out dx, al
        0xeb, 0xf8, // jmp, to lodsb
        0xf4, // hlt
        0xeb, 0xfd, // jmp, to hlt
    ]);
    image.extend_from_slice(says.as_bytes());
    image.resize(20_000, 0);
    image
}

const FIRMWARE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// A guest with UEFI's own network boot: by PXE from our TFTP server, by HTTP from a web server on the internet, which is
/// found by its name and reached through NAT. PXE comes first and asks for two minutes, so it may be left out.
fn boots_by_uefi(test: &str, rule: &str, without: &[&str], says: &str) -> anyhow::Result<()> {
    let tools = [&TOOLS[..], &["qemu-system-x86_64", FIRMWARE]].concat();
    if !tool::ready(&format!("boot::{test}"), &tools) {
        return Ok(());
    }
    let world = World::new()?;
    let netd = Netd::start(&world.host)?;
    let folder = netd.scratch().join("tftp");
    fs::create_dir(&folder)?;
    netd.apply(&format!(
        r#"
name = "lab"
[[subnet]]
address = "10.50.0.1/24"
[subnet.dhcp.boot]
tftp = "{}"
[[subnet.dhcp.boot.rule]]
{rule}
"#,
        folder.display()
    ))?;
    fs::write(folder.join("boot.efi"), uefi_program("booted by PXE\n"))?;
    let site = world.internet.scratch().join("site");
    fs::create_dir(&site)?;
    fs::write(site.join("boot.efi"), uefi_program("booted by HTTP\n"))?;
    let address = format!("{}:8080", tests::world::WWW);
    let home = site.display().to_string();
    let web = ["busybox", "httpd", "-f", "-p", &address, "-h", &home];
    let _web = world.internet.spawn(&web)?;

    let line = netd.vnet(&["port", "attach", "lab", "diskless", "-o", "qemu"])?;
    // The card's own ROM would be iPXE again.
    let line = line.replace("virtio-net-pci,", "virtio-net-pci,romfile=,bootindex=1,");
    let files = world.host.scratch();
    let (serial, variables) = (files.join("serial"), files.join("variables"));
    fs::copy(VARIABLES, &variables)?;
    let flash = [
        format!("if=pflash,unit=0,format=raw,readonly=on,file={FIRMWARE}"),
        format!("if=pflash,unit=1,format=raw,file={}", variables.display()),
    ];
    let fixed = "-M q35 -accel tcg -m 256 -nodefaults -no-user-config -display none -no-reboot";
    let chardev = format!("file:{}", serial.display());
    let mut argv: Vec<&str> = vec!["qemu-system-x86_64"];
    argv.extend(fixed.split(' '));
    argv.extend([
        "-drive", &flash[0], "-drive", &flash[1], "-serial", &chardev,
    ]);
    argv.extend(without.iter().flat_map(|what| ["-fw_cfg", what]));
    argv.extend(line.split_whitespace());
    boots(&netd, &argv, &serial, says)
}

#[test]
fn a_guest_boots_by_uefi_and_tftp() -> anyhow::Result<()> {
    boots_by_uefi(
        "a_guest_boots_by_uefi_and_tftp",
        "arch = [\"uefi-x64\"]\nfile = \"boot.efi\"",
        &[],
        "booted by PXE",
    )
}

#[test]
fn a_guest_boots_by_uefi_and_http() -> anyhow::Result<()> {
    boots_by_uefi(
        "a_guest_boots_by_uefi_and_http",
        "arch = [\"uefi-x64-http\"]\nfile = \"http://www.example.org:8080/boot.efi\"",
        &[
            "name=opt/org.tianocore/IPv4PXESupport,string=no",
            "name=opt/org.tianocore/IPv6PXESupport,string=no",
        ],
        "booted by HTTP",
    )
}
