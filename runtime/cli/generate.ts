// `rankmesh generate`: a user's own model, split over ranks, writing text to standard output.
import { ArgumentError } from '../core/errors.ts'
import { formatReport } from '../model/report.ts'
import { type RunOptions, runModel } from '../model/run.ts'
import { fileFolder } from '../model/source-file.ts'
import { discoverRank } from '../scheduler/discovery.ts'

export interface GenerateArguments {
  model?: string
  ranks?: string
  shares?: string
  memory?: string
  'quantized-as'?: string
  activations?: string
  device?: string[]
  placement?: string
  prompt?: string
  chat?: string
  'max-tokens'?: string
  capacity?: string
  temperature?: string
  'top-k'?: string
  'top-p'?: string
  seed?: string
  deterministic?: string
  profile?: boolean
  quiet?: boolean
}

const DEFAULT_TOKENS = 200

export async function generate(args: GenerateArguments): Promise<number> {
  const { model, prompt, chat, quiet = false } = args
  if (model === undefined) throw new ArgumentError('Expected --model PATH, a Hugging Face model folder or a GGUF file; see rankmesh --help')
  if ((prompt === undefined) === (chat === undefined))
    throw new ArgumentError('Expected either --prompt TEXT or --chat TEXT; see rankmesh --help')
  const place = discoverRank(process.env) // one of many processes, where a launcher started them
  const stop = new AbortController()
  process.once('SIGINT', () => stop.abort(new ArgumentError('Interrupted')))
  const note = (text: string): void => void (quiet || process.stderr.write(text))
  const given = args.shares === 'measured' ? undefined : args.shares?.split(',').map((text) => number(text, 'shares') as number)
  const options: RunOptions = {
    folder: fileFolder(model),
    prompt: chat === undefined ? (prompt as string) : [{ role: 'user', content: chat }],
    ranks: number(args.ranks, 'ranks') ?? place?.size ?? given?.length ?? 1,
    shares: args.shares === 'measured' ? 'measured' : given,
    memory: memoryOf(args.memory),
    quantizedAs: args['quantized-as'] as 'blocks' | undefined,
    activations: args.activations as 'int8' | undefined,
    devices: args.device ?? ['webgpu'],
    ...(args.placement !== undefined && { placement: args.placement as 'local' }),
    maxNewTokens: number(args['max-tokens'], 'max-tokens') ?? DEFAULT_TOKENS,
    ...optional('capacity', number(args.capacity, 'capacity')),
    ...optional('temperature', number(args.temperature, 'temperature')),
    ...optional('topK', number(args['top-k'], 'top-k')),
    ...optional('topP', number(args['top-p'], 'top-p')),
    ...optional('seed', number(args.seed, 'seed')),
    ...(args.deterministic !== undefined && { deterministic: args.deterministic as 'tp-invariant' }),
    profile: args.profile ?? false,
    signal: stop.signal,
    // The callbacks run where rank 0 does, once; the code around this call runs in every thread and process.
    onDevice: ({ name, description, software, group }) => {
      note(`${deviceLine(name, description, software)}Group: ${group}.\n`)
      if (prompt !== undefined) process.stdout.write(prompt)
    },
    onProgress: quiet ? () => {} : progressLine(),
    onText: (text) => void process.stdout.write(text),
  }
  const report = await runModel(options)
  if (place && place.rank > 0) return 0
  process.stdout.write('\n')
  note(`\n${formatReport(report)}`)
  return 0
}

export function deviceLine(name: string, description: string, software: boolean): string {
  const slow = software ? ': a SOFTWARE adapter, this machine shows no GPU. Results are right; speed says nothing about a GPU' : ''
  return `Device ${name}: ${description}${slow}.\n`
}

/** A bar on a terminal, rewritten as bytes arrive and wiped at the end; nothing where standard error is no terminal. */
function progressLine(): RunOptions['onProgress'] & object {
  const width = 30
  let last = 0
  return ({ loaded, total, ranks }) => {
    const done = loaded >= total
    if (!process.stderr.isTTY || (!done && performance.now() - last < 50)) return
    last = performance.now()
    const filled = Math.round((width * loaded) / total)
    const bar = `${'█'.repeat(filled)}${'░'.repeat(width - filled)}`
    const text = `Loading ${bar} ${(loaded / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB into ${ranks} rank${ranks === 1 ? '' : 's'}`
    process.stderr.write(done ? '\r\u001b[K' : `\r${text}\u001b[K`)
  }
}

/** `free`, or for each rank that or a number of GB. */
function memoryOf(text: string | undefined): RunOptions['memory'] {
  if (text === undefined || text === 'free') return text
  return text.split(',').map((part) => (part === 'free' ? part : Math.round(1e9 * (number(part, 'memory') as number))))
}

function number(text: string | undefined, name: string): number | undefined {
  if (text === undefined) return undefined
  const value = Number(text)
  if (text.trim() === '' || Number.isNaN(value))
    throw new ArgumentError(`Expected a number for --${name} but received ${JSON.stringify(text)}`)
  return value
}

function optional<K extends string>(key: K, value: number | undefined): { [key in K]?: number } {
  return (value === undefined ? {} : { [key]: value }) as { [key in K]?: number }
}
