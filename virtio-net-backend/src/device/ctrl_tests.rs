//! The control queue against a driver laid out by hand.

use std::sync::Arc;

use super::mock::{Driver, WRITE, memory};
use super::*;

const CONTROL: u64 = 0x1000;
const DATA: u64 = 0x1_0000;

const SETTINGS: Settings = Settings {
    mac: [2, 0, 0, 0, 0, 1],
    mtu: None,
    queue_pairs: 2,
    own_control_queue: true,
    withheld: Features::from_bits(0),
};

fn offered() -> Features {
    Device::new(&SETTINGS).offered()
}

/// A device of two pairs with nothing but its control queue running.
fn device(features: Features) -> (Device, Driver) {
    let memory = memory();
    let mut device = Device::new(&SETTINGS);
    device.accept(features).expect("offered");
    device.set_memory(Arc::clone(&memory));
    let driver = Driver::new(&memory, CONTROL, 16);
    let index = if device.accepted().has(Features::MQ) {
        4
    } else {
        2
    };
    device.start_queue(index, driver.setup()).expect("starts");
    (device, driver)
}

/// Makes a command available.
fn put(driver: &mut Driver, command: &[u8]) {
    driver.write(DATA, command);
    driver.write(DATA + 0x1_0000, &[9]);
    let len = u32::try_from(command.len()).expect("short");
    driver.chain(0, &[(DATA, len, 0), (DATA + 0x1_0000, 1, WRITE)]);
}

/// A command and what came of it: 0 it was done, 1 it was not.
fn tell(device: &mut Device, driver: &mut Driver, command: &[u8]) -> u8 {
    put(driver, command);
    device.serve_control().expect("no fault");
    driver.read(DATA + 0x1_0000, 1)[0]
}

fn to(mac: [u8; 6]) -> Vec<u8> {
    [&mac[..], &[0; 10]].concat()
}

fn admits(device: &Device, head: &[u8]) -> bool {
    device.control().filter().admits(head, device.accepted())
}

/// CTRL_MAC, MAC_TABLE_SET: so many addresses of either kind.
fn tables(unicast: u16, multicast: u16) -> Vec<u8> {
    let table = |first: u8, count: u16| {
        let addresses = (0..count).flat_map(|number| {
            let [high, low] = number.to_be_bytes();
            [first, 0, 0, 0, high, low]
        });
        [
            &u32::from(count).to_le_bytes()[..],
            &addresses.collect::<Vec<_>>(),
        ]
        .concat()
    };
    [vec![1, 0], table(2, unicast), table(3, multicast)].concat()
}

#[test]
fn every_command_is_kicked_for_and_answered_by_one_interrupt() {
    let features = Features::VERSION_1.with(Features::CTRL_VQ);
    let (mut device, mut driver) = device(features.with(Features::EVENT_IDX));
    let mut next = 0;
    for round in 0..3usize {
        let turn = device.serve_control().expect("no fault");
        assert_eq!(turn, ctrl::Turn::default(), "nothing was asked");
        assert_eq!(driver.avail_event(), next, "a kick is wanted for the next");
        driver.set_used_event(next);
        for _ in 0..=round {
            put(&mut driver, &[9, 9]);
            next += 1;
        }
        let turn = device.serve_control().expect("no fault");
        assert_eq!((turn.commands, turn.interrupt), (round + 1, true));
    }

    let (mut device, mut driver) = self::device(features);
    put(&mut driver, &[9, 9]);
    let turn = device.serve_control().expect("no fault");
    assert_eq!((turn.commands, turn.interrupt), (1, true));
    let turn = device.serve_control().expect("no fault");
    assert_eq!((turn.commands, turn.interrupt), (0, false));
    driver.write(driver.avail_at(), &1u16.to_le_bytes());
    put(&mut driver, &[9, 9]);
    let turn = device.serve_control().expect("no fault");
    assert_eq!((turn.commands, turn.interrupt), (1, false), "it polls");
}

#[test]
fn more_addresses_than_are_kept_are_all_of_that_kind_until_there_are_fewer() {
    let (mut device, mut driver) = device(offered());
    let mut tell = |device: &mut Device, command: &[u8]| tell(device, &mut driver, command);
    assert_eq!(tell(&mut device, &[0, 0, 0]), 0, "no longer promiscuous");
    let (unicast, multicast) = (to([4; 6]), to([5; 6]));
    let both = |device: &Device| (admits(device, &unicast), admits(device, &multicast));
    assert_eq!(both(&device), (false, false));
    for (table, expected) in [
        (tables(64, 64), (false, false)),
        (tables(65, 0), (true, false)),
        (tables(0, 65), (false, true)),
        (tables(400, 0), (true, false)),
        (tables(400, 400), (true, true)),
        (tables(2, 2), (false, false)),
        (tables(5000, 0), (true, true)),
        (tables(0, 0), (false, false)),
    ] {
        assert_eq!(tell(&mut device, &table), 0);
        assert_eq!(both(&device), expected, "{} bytes", table.len());
    }
    let endless = [vec![0, 3], vec![1; 20_000]].concat();
    assert_eq!(tell(&mut device, &endless), 1, "no such command");
}

#[test]
fn vlans_are_filtered_also_for_a_driver_without_receive_modes() {
    let features = Features::VERSION_1.with(Features::CTRL_VQ);
    let (mut device, mut driver) = device(features.with(Features::CTRL_VLAN));
    let tagged = |vlan: u8| [&[4; 12][..], &[0x81, 0, 0, vlan]].concat();
    assert!(admits(&device, &to([4; 6])), "without a tag");
    assert!(!admits(&device, &tagged(7)));
    assert_eq!(tell(&mut device, &mut driver, &[2, 0, 7, 0]), 0);
    assert!(admits(&device, &tagged(7)) && !admits(&device, &tagged(8)));
    assert_eq!(tell(&mut device, &mut driver, &[2, 1, 7, 0]), 0);
    assert!(!admits(&device, &tagged(7)));
}

#[test]
fn the_control_queue_sets_modes_addresses_and_offloads() {
    let (mut device, mut driver) = device(offered());
    let mut tell = |device: &mut Device, command: &[u8]| tell(device, &mut driver, command);
    assert!(
        admits(&device, &to([4; 6])),
        "everything until a mode is set"
    );
    assert_eq!(tell(&mut device, &[0, 0, 0]), 0, "no longer promiscuous");
    assert!(!admits(&device, &to([4; 6])) && admits(&device, &to([0xff; 6])));
    assert_eq!(
        tell(&mut device, &[1, 1, 4, 4, 4, 4, 4, 4]),
        0,
        "another address"
    );
    assert_eq!(device.config().mac, [4; 6]);
    assert!(admits(&device, &to([4; 6])));
    assert_eq!(
        tell(
            &mut device,
            &[1, 0, 1, 0, 0, 0, 2, 2, 2, 2, 2, 2, 0, 0, 0, 0]
        ),
        0
    );
    assert!(admits(&device, &to([2; 6])));
    assert_eq!(
        tell(&mut device, &[1, 0, 200, 0, 0, 0, 1]),
        1,
        "a table that is not there"
    );
    let tagged = [&[0xff; 6][..], &[2; 6], &[0x81, 0, 0, 7]].concat();
    assert!(!admits(&device, &tagged));
    assert_eq!(tell(&mut device, &[2, 0, 7, 0]), 0, "its VLAN is wanted");
    assert!(admits(&device, &tagged));
    assert_eq!(tell(&mut device, &[2, 0, 0xff, 0xff]), 1, "no such VLAN");
    assert_eq!(tell(&mut device, &[4, 0, 2, 0]), 0, "two pairs");
    assert_eq!(tell(&mut device, &[4, 0, 3, 0]), 1, "there are two");
    assert_eq!(device.control().pairs(), 2);
    assert!(device.announce() && device.config().status & config_space::STATUS_ANNOUNCE != 0);
    assert_eq!(tell(&mut device, &[3, 0]), 0, "announced");
    assert!(device.config().status & config_space::STATUS_ANNOUNCE == 0);
    let csum_only = [&[5, 0][..], &Features::GUEST_CSUM.bits().to_le_bytes()].concat();
    assert_eq!(tell(&mut device, &csum_only), 0);
    assert!(device.receive_features().has(Features::GUEST_CSUM));
    assert!(!device.receive_features().has(Features::GUEST_TSO4));
    assert_eq!(tell(&mut device, &[9, 9]), 1, "no such class");
    assert_eq!(tell(&mut device, &[]), 1, "no command at all");
}
