//! The file format of speedscope (<https://www.speedscope.app/file-format-schema.json>): a
//! "sampled" profile of stacks and weights.

use serde_json::json;

use super::Program;
use super::callgraph::CallGraph;

/// The program's stacks as JSON.
pub fn speedscope(program: &Program) -> String {
    let frames: Vec<_> = program
        .functions
        .iter()
        .map(|function| match &function.source {
            Some(source) => json!({
                "name": function.name, "file": source.file, "line": source.line,
            }),
            None => json!({
                "name": function.name, "file": program.modules[function.module].path,
            }),
        })
        .collect();
    let (samples, weights): (Vec<_>, Vec<_>) = CallGraph::new(program).stacks().into_iter().unzip();
    let end = weights
        .iter()
        .fold(0u64, |sum, weight| sum.saturating_add(*weight));
    let file = json!({
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "exporter": concat!("temper ", env!("CARGO_PKG_VERSION")),
        "name": program.name,
        "activeProfileIndex": 0,
        "shared": { "frames": frames },
        "profiles": [{
            "type": "sampled",
            "name": format!("{}, instructions", program.name),
            "unit": "none",
            "startValue": 0,
            "endValue": end,
            "samples": samples,
            "weights": weights,
        }],
    });
    file.to_string() + "\n"
}
