import sys, time, torch
from weft.engine.llm import LLM
from weft.engine.request import SamplingParams
from weft.bench import decode as bench
from weft.vocabulary.layout import Layout
from weft.layers.fused import decode_attention as A, skinny_linear as S, products as P, language as L
import decode_kernels as dk
T0=time.time()
def log(*a): print(f"[{time.time()-T0:.0f}]",*a,flush=True)
cases=[bench.DecodeCase(batch=32,prompt_tokens=1024),bench.DecodeCase(batch=1,prompt_tokens=128)]
llm=LLM('llama-3.1-8b',weights='dummy',device='cuda',**bench.limits_for(cases,129,Layout()))
def steady(B,prompt,n=50):
    e=llm.engine; ps=bench._prompts(bench.DecodeCase(batch=B,prompt_tokens=prompt),1000)
    for i,p in enumerate(ps): e.add(5*10**9+i,p,SamplingParams(max_tokens=200,ignore_eos=True))
    seen=0
    while seen<B*6: seen+=len(e.step())
    torch.cuda.synchronize(); t=time.perf_counter()
    for _ in range(n): e.step()
    torch.cuda.synchronize(); dt=(time.perf_counter()-t)/n*1e3
    for i in range(B): e.abort(5*10**9+i)
    while e.has_work: e.step()
    return round(dt,3)
again=lambda: llm.engine.runner.capture((1,32))
log('new: B1',steady(1,128),'B32',steady(32,1024))
old=P.tile_for
def without(match):
    P.tile_for=lambda m,n,k,gated: None if m>1 and match(n,k,gated) else old(m,n,k,gated=gated); again(); r=steady(32,1024); P.tile_for=old; return r
log('qkv cublas',without(lambda n,k,g: n==6144))
def withtile(match,t):
    P.tile_for=lambda m,n,k,gated: t if m>1 and match(n,k,gated) else old(m,n,k,gated=gated); again(); r=steady(32,1024); P.tile_for=old; return r
for name,m,ts in (('qkv',lambda n,k,g:n==6144,[S.Tile(block_n=64,block_k=128,splits=4,num_stages=4),S.Tile(block_n=64,block_k=128,splits=2,num_stages=4)]),
  ('gate_up',lambda n,k,g:g,[S.Tile(block_n=64,block_k=64,num_stages=6),S.Tile(block_n=32,block_k=256,num_stages=3)]),
  ('down',lambda n,k,g:k==14336,[S.Tile(block_n=64,block_k=128,splits=4,num_stages=4),S.Tile(block_n=64,block_k=128,splits=4,num_stages=6)]),
  ('out',lambda n,k,g:n==4096 and k==4096,[S.Tile(block_n=64,block_k=128,splits=4,num_stages=4)])):
    for t in ts:
        try: log(name,t.block_n,t.block_k,t.splits,t.num_stages,withtile(m,t))
        except Exception as e: log(name,t,repr(e)[:120])
sp=A.DecodeWorkspace.splits
oldd=A.decode_attention
import weft.layers.fused_attention as FA
space=llm.engine.runner._fused._workspace; space.partial=torch.empty(1<<24,device='cuda')
for kw in (dict(splits=3),dict(splits=4),dict(splits=2,num_stages=3),dict(splits=3,num_stages=3),dict(splits=4,block_tokens=32,num_stages=3)):
    FA.decode_attention=lambda *a,kw=kw,**k: oldd(*a,**{**k,**kw}); again(); log('attention',kw,steady(32,1024))
FA.decode_attention=oldd
again(); log('again: B1',steady(1,128),'B32',steady(32,1024))
from weft.vocabulary.model_source import find_model
llm.close()
