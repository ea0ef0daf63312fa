//! Folded stacks, as flame graph tools read them: `main;f;g 123` a line.

use std::fmt::Write;

use super::Program;
use super::callgraph::CallGraph;

/// The program's stacks, one a line.
pub fn folded(program: &Program) -> String {
    let mut text = String::new();
    for (stack, cost) in CallGraph::new(program).stacks() {
        let names = stack.iter().map(|&function| {
            let function = &program.functions[function];
            // What separates frames and numbers can't be part of a name.
            function
                .name
                .replace(';', ":")
                .replace(char::is_control, "?")
        });
        let names: Vec<String> = names.collect();
        writeln!(text, "{} {cost}", names.join(";")).expect("writing to a string");
    }
    text
}
