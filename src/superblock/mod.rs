//! Tier 2: superblocks. Hot paths are found ([`form`]), rebuilt by the optimizer crate, tried
//! against what they would replace ([`trial`]), and kept only if they are faster. The only
//! user of the optimizer crate; knows nothing of threads or the cache.

mod form;
mod trial;

pub use form::{Formed, Guide, form};
pub use optimizer::region::{
    ContextLayout, FlagsOf, FlagsOperation, OptimizedCode, RegionInput, Steps, Sum, Value,
};
pub use optimizer::relaid::{relay, state_at};
pub use trial::{Slice, Trial, Verdict};
