//! A resource from a control plane that may be anybody's: decoded, or refused with reasons.

use mesh_common::xds::protobuf::Any;
use mesh_proxy::xds::decode::decode;

use crate::kind;

/// The first byte says which type, the others are the encoded resource.
pub fn run(bytes: &[u8]) {
    let Some((&number, value)) = bytes.split_first() else { return };
    let kind = kind(number);
    let any = Any { type_url: kind.url().to_owned(), value: value.to_vec() };
    for name in ["outbound|80||reviews.shop.svc.cluster.local", "virtualOutbound", "10.0.3.4:80", "ROOTCA"] {
        if let Err(reasons) = decode(kind, name, &any) {
            assert!(
                !reasons.is_empty() && reasons.iter().all(|it| !it.is_empty()),
                "refused without a reason"
            );
        }
    }
}
