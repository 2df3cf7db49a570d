#!/usr/bin/env node
/** The `faultline` command. Each of its subcommands is loaded only when it is asked for. */

const commands: Record<string, { about: string; run(args: string[]): Promise<number> }> = {
  bench: {
    about: 'what a remote page fault costs on this machine, and where the time goes (bench --help)',
    run: async (args) => (await import('../../benchmarks/main.js')).bench(args),
  },
};

function usage(): string {
  const lines = Object.entries(commands).map(([name, { about }]) => `  ${name.padEnd(8)} ${about}`);
  return ['Usage: faultline COMMAND', '', ...lines].join('\n');
}

async function main([name, ...args]: string[]): Promise<number> {
  if (name === undefined || name === '--help' || name === '-h' || name === 'help') {
    console.log(usage());
    return 0;
  }
  if (!Object.hasOwn(commands, name)) {
    console.error(`faultline: there is no command '${name}'\n\n${usage()}`);
    return 2;
  }
  return commands[name].run(args);
}

main(process.argv.slice(2)).then((code) => process.exit(code), (error: unknown) => {
  console.error(error instanceof Error ? error.message : error);
  process.exit(1);
});
