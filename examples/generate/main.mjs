// The demo: a real Llama-architecture model writes text, its weights split over ranks; then a table of what each rank held and did.
//   node examples/generate/main.mjs [PROMPT] [RANKS] [TOKENS]
import { fileURLToPath } from 'node:url'
import { fileFolder, formatReport, runModel } from 'rankmesh'

const [prompt = 'ROMEO:\n', ranks = '4', tokens = '300'] = process.argv.slice(2)
const model = fileURLToPath(new URL('../models/tiny-shakespeare', import.meta.url))

const report = await runModel({
  folder: fileFolder(model),
  ranks: Number(ranks),
  prompt,
  maxNewTokens: Number(tokens),
  temperature: 0.8,
  topK: 40,
  seed: 1,
  profile: true,
  onDevice({ name, description, software }) {
    console.log(`${ranks} ranks on ${name}: ${description}`)
    if (software)
      console.log('This is a software adapter: this machine shows no GPU. The text is right; the speed says nothing about a GPU.')
    process.stdout.write(`\n${prompt}`)
  },
  onText: (text) => process.stdout.write(text),
})

console.log(`\n\n${formatReport(report)}`)
