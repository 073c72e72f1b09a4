//! Prints the C header of the records. `cargo xtask ebpf` writes it to `ebpf/src/records.h`.
#![forbid(unsafe_code)]

use ebpf_abi::layout::Layout;
use ebpf_abi::{
    ARGV_BYTES_MAX, ARGV_PART_BYTES_MAX, BUDGET_BYTES, LAYOUTS, PACKET_BYTES_MAX, PATH_BYTES_MAX,
    RING_BYTES, SESSIONS_MAX, VERSION, names, rules,
};

fn main() {
    print!("{}", header());
}

fn header() -> String {
    let mut text = String::from(
        "/* The records, as ebpf/abi has them. Written by `cargo xtask ebpf`; do not edit. */\n\
         #ifndef POSTERN_RECORDS_H\n#define POSTERN_RECORDS_H\n\n#include <linux/types.h>\n\n",
    );
    let [control, file, net] = RING_BYTES;
    for (name, value) in [
        ("RECORD_VERSION", u32::from(VERSION)),
        ("PATH_BYTES_MAX", PATH_BYTES_MAX),
        ("ARGV_PART_BYTES_MAX", ARGV_PART_BYTES_MAX),
        ("ARGV_BYTES_MAX", ARGV_BYTES_MAX),
        ("PACKET_BYTES_MAX", PACKET_BYTES_MAX),
        ("SESSIONS_MAX", SESSIONS_MAX),
        ("RING_BYTES_CONTROL", control),
        ("RING_BYTES_FILE", file),
        ("RING_BYTES_NET", net),
        ("RULES_PATHS_MAX", rules::PATHS_MAX),
        ("RULES_ADDRESSES_MAX", rules::ADDRESSES_MAX),
        ("RULES_HASHES_MAX", rules::HASHES_MAX),
        ("RULES_POLICIES_MAX", rules::POLICIES_MAX),
        ("SPACE_BITS", rules::SPACE_BITS),
        ("RULE_NO_PATH", rules::RULE_NO_PATH),
        ("RULE_NO_DIGEST", rules::RULE_NO_DIGEST),
        ("RULE_CONTAIN", rules::RULE_CONTAIN),
    ] {
        define(&mut text, name, value);
    }
    let budgets = BUDGET_BYTES.map(|bytes| bytes.to_string()).join(", ");
    text.push_str(&format!("#define BUDGETS {{ {budgets} }}\n"));
    let numbers = [
        names::kind::ALL,
        names::class::ALL,
        names::flag::ALL,
        names::prov::ALL,
        names::file::ALL,
        names::net::ALL,
        names::rights::ALL,
        names::kernel::ALL,
        names::trace::ALL,
        names::via::ALL,
        rules::kind::ALL,
        rules::mode::ALL,
        rules::space::ALL,
        rules::has::ALL,
        rules::contain::ALL,
        rules::deed::ALL,
    ];
    for &(name, value) in numbers.into_iter().flatten() {
        define(&mut text, name, value);
    }
    for layout in LAYOUTS.iter().chain(rules::MORE_LAYOUTS).chain(rules::LAYOUTS) {
        text.push_str(&structure(layout));
    }
    text.push_str("\n#endif\n");
    text
}

fn define(text: &mut String, name: &str, value: u32) {
    text.push_str(&format!("#define {name} {value}\n"));
}

fn structure(layout: &Layout) -> String {
    let name = layout.name;
    let mut text = format!("\n/*{} */\nstruct {name} {{\n", layout.doc);
    for field in layout.fields {
        let many = if field.count > 0 { format!("[{}]", field.count) } else { String::new() };
        text.push_str(&format!("\t/*{} */\n\t{} {}{many};\n", field.doc, field.c_type, field.name));
    }
    text.push_str("};\n");
    let mut assert =
        |what: String| text.push_str(&format!("_Static_assert({what}, \"{name}\");\n"));
    assert(format!("sizeof(struct {name}) == {}", layout.size));
    for field in layout.fields {
        let (field, offset) = (field.name, field.offset);
        assert(format!("__builtin_offsetof(struct {name}, {field}) == {offset}"));
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_header_is_the_one_of_these_records() {
        let committed = include_str!("../../../src/records.h");
        assert!(committed == super::header(), "run `cargo xtask ebpf`");
    }
}
