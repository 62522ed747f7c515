//! A stock Envoy as a data plane of the mesh, in both forms of xDS. `MESH_ENVOY` names the program.

use mesh_test::envoy::Form::{Delta, StateOfTheWorld};
use mesh_test::scenario::envoy;

macro_rules! stories {
    ($($name:ident),* $(,)?) => {
        mod delta {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() -> anyhow::Result<()> {
                    Box::pin(envoy::play(stringify!($name), Delta)).await
                }
            )*
        }

        mod state_of_the_world {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() -> anyhow::Result<()> {
                    Box::pin(envoy::play(stringify!($name), StateOfTheWorld)).await
                }
            )*
        }
    };
}

stories! {
    split_followed_by_an_envoy,
    names_known_to_an_envoy,
    endpoints_removed_under_an_envoys_load,
    an_envoy_serves,
    two_envoys,
    impostors_get_no_byte_from_an_envoy,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_rotate_under_an_envoys_load() -> anyhow::Result<()> {
    Box::pin(envoy::certificates_rotate_under_an_envoys_load()).await
}
