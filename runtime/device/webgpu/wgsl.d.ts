// A `.wgsl` import is the file's text (esbuild's text loader; a small plugin in vitest).
declare module '*.wgsl' {
  const source: string
  export default source
}
