//! `network create`

use std::net::IpAddr;

use arctern_net::{AddressRange, CreateNetwork, Driver, IpNet};

use super::Context;
use crate::report::{Cannot, CommandResult};

/// Make a network for containers
///
/// Driver bridge makes a bridge that translates addresses and publishes ports. On the two others
/// containers are machines of a segment, with addresses of it, and keep them when they move to
/// another host of the segment: a bridge that is there already, and macvlan on a device. Give every
/// host of the segment an --ip-range of its own.
///
///   arctern network create --subnet 10.99.0.0/16 --ipv6 backend
///   arctern network create -d macvlan -o parent=eth0 --subnet 192.0.2.0/24 --gateway 192.0.2.1 \
///       --ip-range 192.0.2.64/28 lan
///   arctern network create -o mode=unmanaged --interface-name br0 --subnet 192.0.2.0/24 lan
///   arctern run -d --network lan --ip 192.0.2.70 nginx
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    /// How containers are connected: bridge or macvlan
    #[arg(short, long, value_name = "DRIVER", default_value = "bridge", value_parser = parse::<Driver>)]
    pub driver: Driver,
    /// Option of the driver: mode (bridge: managed, unmanaged; macvlan: bridge, private, vepa),
    /// parent (macvlan), mtu, no_default_route
    #[arg(short, long = "opt", value_name = "NAME=VALUE", value_parser = parse_pair)]
    pub options: Vec<(String, String)>,
    /// Subnet; one of IPv4 and one of IPv6 at most
    #[arg(long, value_name = "SUBNET")]
    pub subnet: Vec<IpNet>,
    /// The containers' default route; the first address of its subnet without it
    #[arg(long, value_name = "ADDRESS")]
    pub gateway: Vec<IpAddr>,
    /// Where free addresses are taken from
    #[arg(long, value_name = "SUBNET|FIRST-LAST", value_parser = parse::<AddressRange>)]
    pub ip_range: Vec<AddressRange>,
    /// Give containers IPv6 addresses too
    #[arg(long)]
    pub ipv6: bool,
    /// Name of the bridge, or of the device that macvlan shares
    #[arg(long, value_name = "NAME")]
    pub interface_name: Option<String>,
    /// Add a label
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    pub label: Vec<(String, String)>,
    /// Accepted for compatibility: there is no name server for containers
    #[arg(long)]
    pub disable_dns: bool,
    /// That the network exists is no error
    #[arg(long)]
    pub ignore: bool,
    /// Name of the network
    #[arg(value_name = "NAME")]
    pub name: String,
}

fn parse<T: std::str::FromStr>(text: &str) -> Result<T, T::Err> {
    text.parse()
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    match name {
        "" => Err(format!("`{text}` has no name")),
        _ => Ok((name.to_owned(), value.to_owned())),
    }
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let host = ctx.host()?;
    let name = args.name.clone();
    if args.ignore && host.network(&name).is_ok() {
        outln!("{name}");
        return Ok(0);
    }
    let wanted = CreateNetwork {
        name: args.name,
        driver: args.driver,
        interface: args.interface_name,
        subnets: args.subnet,
        gateways: args.gateway,
        ranges: args.ip_range,
        ipv6: args.ipv6,
        options: args.options.into_iter().collect(),
        labels: args.label.into_iter().collect(),
        created: String::new(),
    };
    let network = host.create_network(wanted).cannot(|| format!("make network `{name}`"))?;
    outln!("{}", network.name);
    Ok(0)
}
