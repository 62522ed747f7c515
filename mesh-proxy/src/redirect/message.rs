//! A plan in the words of the kernel: one batch of nf_tables messages that replaces the table at once. See
//! `include/uapi/linux/netfilter/nf_tables.h`.

use ipnet::IpNet;
use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage,
};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions,
    Hook as HookAttribute, Immediate, InetHookNumber, ListAttribute, Meta, MetaKey, NfTablesMessage,
    Operator, Payload, Register, RuleAttribute, RuleMessage, TableAttribute, TableMessage, Verdict,
    VerdictAttribute,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};

use mesh_common::capture::PortRange;

use super::plan::{Action, Chain, Condition, Hook, PRIORITY, Plan, Rule, TABLE};

pub(super) type Message = NetlinkMessage<NetfilterMessage>;
/// What a rule consists of.
pub(super) type Expression = ListAttribute<ExpressionAttribute>;

/// `NFPROTO_INET`: IPv4 and IPv6 in one table.
const INET: u8 = 1;
/// `NFNL_SUBSYS_NFTABLES`.
const NF_TABLES: u16 = 10;
/// `NF_ACCEPT`.
const ACCEPT: u32 = 1;
const TCP: u8 = 6;
/// In a network namespace the loopback interface is always the first.
const LOOPBACK_INDEX: u32 = 1;
/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
const IPV4: u8 = 2;
const IPV6: u8 = 10;
/// `NFT_PAYLOAD_NETWORK_HEADER` and `NFT_PAYLOAD_TRANSPORT_HEADER`.
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// `NFTA_REDIR_REG_PROTO_MIN`, `NFTA_REDIR_REG_PROTO_MAX`, `NFTA_REDIR_FLAGS`.
const REDIR_PORT_MIN: u16 = 1;
const REDIR_PORT_MAX: u16 = 2;
const REDIR_FLAGS: u16 = 3;
/// `NF_NAT_RANGE_PROTO_SPECIFIED`.
const PORT_IS_GIVEN: u32 = 2;

/// One transaction: whatever the table held is replaced, or nothing changes.
pub(super) fn replace(plan: &Plan) -> Vec<Message> {
    let table = || TableMessage { attributes: vec![TableAttribute::Name(TABLE.to_owned())] };
    // Deleting what is not there is an error, so it is made first.
    let mut batch = vec![
        control(ControlMessage::BatchBegin),
        request(NfTablesMessage::NewTable(table()), NLM_F_CREATE),
        request(NfTablesMessage::DeleteTable(table()), 0),
        request(NfTablesMessage::NewTable(table()), NLM_F_CREATE),
    ];
    for chain in &plan.chains {
        batch.push(request(NfTablesMessage::NewChain(new_chain(chain)), NLM_F_CREATE));
        for rule in &chain.rules {
            let attributes = vec![
                RuleAttribute::Table(TABLE.to_owned()),
                RuleAttribute::Chain(chain.hook.name().to_owned()),
                RuleAttribute::Expressions(expressions(rule)),
            ];
            let rule = NfTablesMessage::NewRule(RuleMessage { attributes });
            batch.push(request(rule, NLM_F_CREATE | NLM_F_APPEND));
        }
    }
    batch.push(control(ControlMessage::BatchEnd));
    batch
}

/// Asks for all rules of the table.
pub(super) fn list_rules() -> Message {
    let attributes = vec![RuleAttribute::Table(TABLE.to_owned())];
    let mut message = message(NfTablesMessage::GetRule(RuleMessage { attributes }), INET, 0);
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    message
}

/// The chain and the expressions of a listed rule of our table.
pub(super) fn listed(message: NetfilterMessage) -> Option<(String, Vec<Expression>)> {
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewRule(rule)) = message.inner else { return None };
    let (mut ours, mut chain, mut expressions) = (false, None, None);
    for attribute in rule.attributes {
        match attribute {
            RuleAttribute::Table(table) => ours = table == TABLE,
            RuleAttribute::Chain(name) => chain = Some(name),
            RuleAttribute::Expressions(list) => expressions = Some(list),
            _ => {}
        }
    }
    Some((chain.filter(|_| ours)?, expressions?))
}

/// The expressions of a rule.
pub(super) fn expressions(rule: &Rule) -> Vec<Expression> {
    let mut list = Vec::new();
    for condition in &rule.conditions {
        match condition {
            Condition::NotTcp => compare_meta(&mut list, MetaKey::L4Proto, Operator::NotEqual, vec![TCP]),
            Condition::FromLoopback => equal_meta(&mut list, MetaKey::Iif, LOOPBACK_INDEX),
            Condition::ToLoopback => equal_meta(&mut list, MetaKey::Oif, LOOPBACK_INDEX),
            Condition::Uid(uid) => equal_meta(&mut list, MetaKey::SocketUserId, *uid),
            Condition::Source(range) => in_range(&mut list, range, 12, 8),
            Condition::Destination(range) => in_range(&mut list, range, 16, 24),
            Condition::Port(ports) => in_ports(&mut list, *ports),
        }
    }
    match rule.action {
        Action::Return => list.push(immediate(
            Register::Verdict,
            DataAttribute::Verdict(vec![VerdictAttribute::Code(Verdict::Return)]),
        )),
        Action::Redirect(port) => redirect(&mut list, port),
    }
    list
}

fn redirect(list: &mut Vec<Expression>, port: u16) {
    // The kernel wants to know that the protocol has ports.
    compare_meta(list, MetaKey::L4Proto, Operator::Equal, vec![TCP]);
    list.push(other("counter", Vec::new()));
    list.push(immediate(Register::Reg1, DataAttribute::Value(port.to_be_bytes().to_vec())));
    let register = u32::from(Register::Reg1);
    let number = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    list.push(other(
        "redir",
        vec![
            number(REDIR_PORT_MIN, register),
            number(REDIR_PORT_MAX, register),
            number(REDIR_FLAGS, PORT_IS_GIVEN),
        ],
    ));
}

fn other(name: &str, attributes: Vec<DefaultNla>) -> Expression {
    Expressions::Other { expression_type: name.to_owned(), attributes }.into()
}

fn immediate(register: Register, data: DataAttribute) -> Expression {
    Expressions::Immediate(vec![Immediate::DestinationRegister(register), Immediate::Data(data)]).into()
}

fn compare(operator: Operator, value: Vec<u8>) -> Expression {
    Expressions::Cmp(vec![
        Cmp::SourceRegister(Register::Reg1),
        Cmp::Op(operator),
        Cmp::Data(DataAttribute::Value(value)),
    ])
    .into()
}

fn compare_meta(list: &mut Vec<Expression>, key: MetaKey, operator: Operator, value: Vec<u8>) {
    list.push(Expressions::Meta(vec![Meta::DestinationRegister(Register::Reg1), Meta::Key(key)]).into());
    list.push(compare(operator, value));
}

/// Interface numbers and user ids are in the machine's own byte order.
fn equal_meta(list: &mut Vec<Expression>, key: MetaKey, value: u32) {
    compare_meta(list, key, Operator::Equal, value.to_ne_bytes().to_vec());
}

fn load(base: u32, offset: u32, length: u32) -> Expression {
    Expressions::Payload(vec![
        Payload::DestinationRegister(Register::Reg1),
        Payload::Base(base),
        Payload::Offset(offset),
        Payload::Len(length),
    ])
    .into()
}

fn in_range(list: &mut Vec<Expression>, range: &IpNet, v4_offset: u32, v6_offset: u32) {
    let (family, offset, network, mask) = match range {
        IpNet::V4(range) => {
            (IPV4, v4_offset, range.network().octets().to_vec(), range.netmask().octets().to_vec())
        }
        IpNet::V6(range) => {
            (IPV6, v6_offset, range.network().octets().to_vec(), range.netmask().octets().to_vec())
        }
    };
    let length = network.len() as u32; // 4 or 16
    compare_meta(list, MetaKey::Nfproto, Operator::Equal, vec![family]);
    list.push(load(NETWORK_HEADER, offset, length));
    if range.prefix_len() != range.max_prefix_len() {
        let zeros = vec![0; network.len()];
        list.push(
            Expressions::Bitwise(vec![
                Bitwise::SourceRegister(Register::Reg1),
                Bitwise::DestinationRegister(Register::Reg1),
                Bitwise::Length(length),
                Bitwise::Mask(DataAttribute::Value(mask)),
                Bitwise::Xor(DataAttribute::Value(zeros)),
            ])
            .into(),
        );
    }
    list.push(compare(Operator::Equal, network));
}

fn in_ports(list: &mut Vec<Expression>, ports: PortRange) {
    compare_meta(list, MetaKey::L4Proto, Operator::Equal, vec![TCP]);
    list.push(load(TRANSPORT_HEADER, 2, 2));
    let bytes = |port: u16| port.to_be_bytes().to_vec();
    if ports.first() == ports.last() {
        list.push(compare(Operator::Equal, bytes(ports.first())));
    } else {
        list.push(compare(Operator::GreatherThanEqual, bytes(ports.first())));
        list.push(compare(Operator::LessThanEqual, bytes(ports.last())));
    }
}

fn new_chain(chain: &Chain) -> ChainMessage {
    let hook = match chain.hook {
        Hook::Prerouting => InetHookNumber::PreRouting,
        Hook::Output => InetHookNumber::LocalOut,
    };
    ChainMessage {
        attributes: vec![
            ChainAttribute::Table(TABLE.to_owned()),
            ChainAttribute::Name(chain.hook.name().to_owned()),
            ChainAttribute::Hook(vec![
                HookAttribute::Number(hook.into()),
                HookAttribute::Priority(PRIORITY.cast_unsigned()),
            ]),
            ChainAttribute::Policy(ACCEPT),
            ChainAttribute::Type("nat".to_owned()),
        ],
    }
}

fn control(inner: ControlMessage) -> Message {
    message(inner, 0, NF_TABLES)
}

fn request(inner: NfTablesMessage, flags: u16) -> Message {
    let mut message = message(inner, INET, 0);
    message.header.flags |= NLM_F_ACK | flags;
    message
}

fn message(inner: impl Into<NetfilterMessageInner>, family: u8, resource: u16) -> Message {
    let header = NetfilterHeader::new(NetfilterProtoFamily::from(family), 0, resource);
    let mut message = Message::from(NetfilterMessage::new(header, inner));
    message.header.flags = NLM_F_REQUEST;
    message
}
