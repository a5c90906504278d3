//! `network ls`

use arctern_net::NetworkConfig;
use serde_json::{Value, json};

use super::Context;
use super::lists::{Condition, Facts, Shown, fulfils, parse_condition};
use crate::report::{Cannot, CommandResult};

/// List networks
///
///   arctern network ls
///   arctern network ls --filter driver=macvlan --format '{{.Name}} {{.Subnets}}'
///   arctern network ls --format json | jq '.[].name'
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    pub shown: Shown,
    /// Whole ids
    #[arg(long)]
    pub no_trunc: bool,
    /// Only matching ones: id=, name=, label=, driver=, dangling= (no container has it), until=
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = parse_condition)]
    pub filter: Vec<Condition>,
}

/// The fields of a row for --format, and the heads of their columns.
pub const FIELDS: &[(&str, &str)] = &[
    ("ID", "NETWORK ID"),
    ("Name", "NAME"),
    ("Driver", "DRIVER"),
    ("NetworkInterface", "DEVICE"),
    ("Subnets", "SUBNETS"),
    ("Created", "CREATED"),
    ("IPv6Enabled", "IPV6"),
    ("Internal", "INTERNAL"),
    ("DNSEnabled", "DNS"),
    ("Labels", "LABELS"),
    ("Options", "OPTIONS"),
    ("IPAMOptions", "IPAM OPTIONS"),
];

/// A network with the names that templates of Podman's users give its facts.
pub fn fields(network: &NetworkConfig) -> Value {
    let subnets: Vec<String> = network.subnets.iter().map(|s| s.subnet.to_string()).collect();
    json!({
        "ID": network.id,
        "Name": network.name,
        "Driver": network.driver,
        "NetworkInterface": network.network_interface,
        "Subnets": subnets,
        "Created": network.created,
        "IPv6Enabled": network.ipv6_enabled,
        "Internal": network.internal,
        "DNSEnabled": network.dns_enabled,
        "Labels": network.labels,
        "Options": network.options,
        "IPAMOptions": network.ipam_options,
    })
}

/// Whether a network is meant.
pub fn is_meant(filter: &[Condition], network: &NetworkConfig, used: bool) -> bool {
    let facts = Facts {
        id: &network.id,
        names: std::slice::from_ref(&network.name),
        labels: network.labels.clone(),
        dangling: !used,
        created: &network.created,
        driver: &network.driver.to_string(),
    };
    fulfils(filter, &facts)
}

/// Runs the command.
pub fn run(ctx: &Context, args: Args) -> CommandResult {
    let mut host = ctx.host()?;
    let mut networks = host.networks().cannot(|| "list networks")?;
    let used = host.used_networks().cannot(|| "list networks")?;
    networks.retain(|network| is_meant(&args.filter, network, used.contains(&network.name)));
    let row = |network: &NetworkConfig| {
        let mut row = fields(network);
        if !args.no_trunc {
            row["ID"] = network.id.chars().take(12).collect::<String>().into();
        }
        row
    };
    let rows: Vec<Value> = networks.iter().map(row).collect();
    let json: Result<Vec<Value>, _> = networks.iter().map(serde_json::to_value).collect();
    let json = json.cannot(|| "write JSON")?;
    let columns = ["ID", "Name", "Driver", "NetworkInterface", "Subnets"];
    args.shown.print(&rows, &json, FIELDS, &columns)?;
    Ok(0)
}
