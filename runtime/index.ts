// The public face of Rankmesh in Node, and nothing else.
export * from './api.ts'
export { fileFolder } from './model/source-file.ts'
