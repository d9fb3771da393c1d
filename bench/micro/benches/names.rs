//! Says what the numbers in gungraun's report stand for: how often a step is done, and its name, one
//! a line. For `bench/micro/run`; a bench, so that nothing is built twice.

fn main() {
    println!("{}", outrigger_micro::ROUNDS);
    for name in outrigger_micro::names() {
        println!("{name}");
    }
}
