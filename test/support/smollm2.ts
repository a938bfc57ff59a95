// SmolLM2-135M-Instruct as a Hugging Face folder, for tests on a real model; the files are large and lie beside the repository, if at all.
import { execFile } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdtemp, readFile, rename, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

export interface SmolLM2Expected {
  config: Record<string, number | boolean>
  /** `ids`: special tokens read as plain text; `special`: as tokens. */
  tokenizer: { text: string; ids: number[]; special: number[] }[]
  greedy: {
    name: string
    prompt: string
    promptIds: number[]
    ids: number[]
    /** Best logit minus the second at each step. */
    margin: number[]
    /** [id, logit], best first. */
    firstTop10: [number, number][]
    text: string
  }[]
  nll: Record<string, unknown>[]
}

/** Where the model's files lie, if they do. */
const MODEL = fileURLToPath(new URL('../../../shared/models/smollm2-135m-instruct', import.meta.url))
const CACHE = join(tmpdir(), 'rankmesh-smollm2-f32')

/**
 * The folder with float32 weights (540 MB, converted once into the temporary folder) and what the model must give; null, with a line that
 * says why, where the model is not there.
 */
export async function smollm2Folder(): Promise<{ dir: string; expected: SmolLM2Expected } | null> {
  const model = await smollm2Gguf()
  if (!model) return null
  // tokenizer_config.json is the last file to be written, and the folder gets its name when it is whole: others may be at it too.
  if (!existsSync(join(CACHE, 'tokenizer_config.json'))) {
    const made = await mkdtemp(`${CACHE}-`)
    await promisify(execFile)(process.execPath, [join(MODEL, 'to-hf.mjs'), made, 'f32'])
    await rename(made, CACHE).catch(() => rm(made, { recursive: true }))
  }
  return { dir: CACHE, expected: model.expected }
}

/** The model's GGUF file and what it must give; null, with a line that says why, where it is not there. */
export async function smollm2Gguf(): Promise<{ file: string; expected: SmolLM2Expected } | null> {
  const file = join(MODEL, 'model.gguf')
  if (!existsSync(file)) {
    console.log(`SmolLM2 tests are skipped: ${file} is not there`)
    return null
  }
  return { file, expected: JSON.parse(await readFile(join(MODEL, 'expected.json'), 'utf8')) as SmolLM2Expected }
}
