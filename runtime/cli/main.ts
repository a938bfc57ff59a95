// The `rankmesh` command: reads its arguments, runs one subcommand, and turns errors into a message and an exit code.
import { parseArgs } from 'node:util'
import { RankmeshError } from '../core/errors.ts'
import { bench } from './bench.ts'
import { doctor } from './doctor.ts'
import { generate } from './generate.ts'
import { run } from './run.ts'

const HELP = `rankmesh: tensor parallelism for JavaScript

  rankmesh generate --model PATH [--ranks N] (--prompt TEXT | --chat TEXT) [options]
      Writes text with a Hugging Face model folder (Llama, Mistral, Qwen2, Qwen3; safetensors) or a GGUF file, split over N ranks.
      --ranks N          ranks, 1 to 64 (default 1)
      --shares A,B,...   how the model is shared out, one number a rank in any unit, such as 0.7,0.2,0.1; or measured: by the speed
                         of each rank (default: evenly)
      --memory A,B,...   GB that each rank's weights and cache may take, or free: as much as is free; one free is for all ranks. Without
                         --shares they decide
      --quantized-as T   keep the matrices of a quantized GGUF file as blocks (the default), or as float32 or bfloat16
      --activations T    let products round activations to bfloat16, or as coarsely as int8, where that is faster: on the CPU
                         (default: never)
      --device NAME      webgpu, webgpu:<index>, webgpu:<part of the adapter's name>, webgpu:software, cpu, cpu:gpu.js, cuda or cuda:<index>
                         (default webgpu); repeat it to spread the ranks over several devices, of any kinds
      --placement P      ranks in this thread (local, the default), a thread each (thread), a process each (process)
      --prompt TEXT      continue this text
      --chat TEXT        answer this message, through the model's chat template
      --max-tokens N     tokens to write at most (default 200)
      --capacity N       positions of the key-value cache (default: the model's own, at most 2048)
      --temperature T    0 takes the likeliest token (default 0)
      --top-k K          draw from the K likeliest tokens
      --top-p P          draw from the likeliest tokens that reach probability P
      --seed S           of the draws (default 0)
      --deterministic tp-invariant   the same bits for every number of ranks (slower)
      --profile          measure the share of time in collectives
      --quiet            only the text

  rankmesh run [-n N] [options] [--] SCRIPT [arguments]
      Starts a script (.js, .mjs, .cjs, .ts; or any command) once per rank, with the variables of torchrun, and its lines under its rank.
      When one fails the others are ended, and its exit code is the run's.
      -n N               ranks on this node, 1 to 64 (default 1)
      --nnodes N         nodes; then each node runs this, with the same -n and
      --node-rank R      its own number, 0 to N - 1
      --master HOST:PORT where the ranks meet: an address of node 0
      --token-file FILE  the ranks' shared secret (on several nodes: or RANKMESH_TOKEN; on one node: by default a fresh one)

  rankmesh bench COLLECTIVE [options]
      Times a collective over sizes, its results checked first, in the conventions of nccl-tests. Exit code 1 where a result was wrong.
      COLLECTIVE         all-reduce, all-gather, reduce-scatter, broadcast, reduce, all-to-all, fused (all-reduce + residual + bias +
                         RMSNorm); over host memory host-all-reduce, host-all-gather, host-broadcast, host-barrier
      --ranks N          default 2
      --placement P      local, thread or process (default local; under a launcher, its processes)
      --backend NAME     of host collectives, instead of --placement: local, thread or shm; of the others webgpu
      --device NAME      as for generate
      --min-bytes B, --max-bytes B, --factor F   sizes from 8 to 16M, each 2 times the last
      --dtype D          float32, bfloat16, float16, int32, uint32 (default float32)
      --op OP            sum, min, max, avg (default sum)
      --iters N, --warmup N                      timed and untimed runs of each size (default 20 and 5)
      --no-verify        do not check the results
      --json, --svg FILE                         the figures as JSON; also as a drawing

  rankmesh doctor [--json]
      Prints what this machine offers, why what is absent is absent, and whether two ranks add up in every placement. Exit code 1
      where something that should work does not.

Text goes to standard output, everything else to standard error.
`

const OPTIONS = {
  model: { type: 'string' },
  ranks: { type: 'string' },
  shares: { type: 'string' },
  memory: { type: 'string' },
  'quantized-as': { type: 'string' },
  activations: { type: 'string' },
  device: { type: 'string', multiple: true },
  placement: { type: 'string' },
  prompt: { type: 'string' },
  chat: { type: 'string' },
  'max-tokens': { type: 'string' },
  capacity: { type: 'string' },
  temperature: { type: 'string' },
  'top-k': { type: 'string' },
  'top-p': { type: 'string' },
  seed: { type: 'string' },
  deterministic: { type: 'string' },
  profile: { type: 'boolean' },
  quiet: { type: 'boolean' },
  json: { type: 'boolean' },
  help: { type: 'boolean', short: 'h' },
} as const

async function main(args: string[]): Promise<number> {
  const [first, ...others] = args
  const helps = others[0] === '--help' || others[0] === '-h'
  if (first === 'run' && !helps) return run(others)
  if (first === 'bench' && !helps) return bench(others)
  const { values, positionals } = parseArgs({ args, options: OPTIONS, allowPositionals: true })
  const [command, ...rest] = positionals
  if (values.help || command === undefined || command === 'help') {
    process.stdout.write(HELP)
    return command === undefined && !values.help ? 2 : 0
  }
  if (rest.length > 0) return usage(`Unexpected argument ${JSON.stringify(rest[0])}`)
  switch (command) {
    case 'generate':
      return generate(values)
    case 'doctor':
      return doctor(values.json ?? false)
    default:
      return usage(`Unknown command ${JSON.stringify(command)}`)
  }
}

function usage(message: string): number {
  process.stderr.write(`${message}; see rankmesh --help\n`)
  return 2
}

main(process.argv.slice(2)).then(
  (code) => {
    process.exitCode = code
  },
  (error: unknown) => {
    const known = error instanceof RankmeshError
    const unreadable = error instanceof TypeError && 'code' in error && String(error.code).startsWith('ERR_PARSE_ARGS')
    if (known) process.stderr.write(`${error.code}: ${error.message}\n`)
    else if (unreadable) process.stderr.write(`${error.message}; see rankmesh --help\n`)
    else process.stderr.write(`${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`)
    process.exitCode = unreadable ? 2 : 1
  },
)
