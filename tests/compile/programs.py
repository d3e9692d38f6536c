"""Programs as XLA writes them, small enough to count by hand."""

# Four turns of a loop: gather a kernel [8, 16] from 4 chips, multiply [32, 8] by it, and start and end a second gather
# around another product. Kernels of all layers are stacked; a turn reads its slice. S(1) is on-chip memory.
SCANNED = """HloModule jit_step, is_scheduled=true, num_partitions=4

%fused_slice (p0: bf16[4,2,16], p1: s32[]) -> bf16[2,16] {
  %p0 = bf16[4,2,16]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p1 = s32[]{:T(128)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %slice = bf16[1,2,16]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={1,2,16}
  ROOT %flat = bf16[2,16]{1,0:T(8,128)(2,1)} bitcast(%slice)
}

%fused_product (p0.1: bf16[32,8], p1.1: bf16[8,16]) -> bf16[32,16] {
  %p0.1 = bf16[32,8]{1,0:T(8,128)(2,1)} parameter(0)
  %p1.1 = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %convolution.1 = bf16[32,16]{1,0:T(8,128)(2,1)} convolution(%p0.1, %p1.1), dim_labels=bf_io->bf
}

%body (state: (s32[], bf16[32,8], bf16[4,2,16])) -> (s32[], bf16[32,8], bf16[4,2,16]) {
  %state = (s32[]{:T(128)}, bf16[32,8]{1,0:T(8,128)(2,1)}, bf16[4,2,16]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = bf16[32,8]{1,0:T(8,128)(2,1)} get-tuple-element(%state), index=1
  %all = bf16[4,2,16]{2,1,0:T(8,128)(2,1)} get-tuple-element(%state), index=2
  %mine = bf16[2,16]{1,0:T(8,128)(2,1)} fusion(%all, %i), kind=kLoop, calls=%fused_slice
  %whole = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} all-gather(%mine), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}
  %start = (bf16[2,16]{1,0}, bf16[8,16]{1,0}) all-gather-start(%mine), channel_id=2, replica_groups={{0,1},{2,3}}, \
dimensions={0}
  %y = bf16[32,16]{1,0:T(8,128)(2,1)} fusion(%x, %whole), kind=kOutput, calls=%fused_product
  %done = bf16[8,16]{1,0} all-gather-done(%start)
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  ROOT %out = (s32[]{:T(128)}, bf16[32,8]{1,0:T(8,128)(2,1)}, bf16[4,2,16]{2,1,0:T(8,128)(2,1)}) tuple(%next, %x, %all)
}

%condition (state.1: (s32[], bf16[32,8], bf16[4,2,16])) -> pred[] {
  %limit = s32[]{:T(128)} constant(5)
  %state.1 = (s32[]{:T(128)}, bf16[32,8]{1,0:T(8,128)(2,1)}, /*index=2*/bf16[4,2,16]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (x.0: bf16[32,8], w.0: bf16[4,2,16]) -> bf16[32,8] {
  %first = s32[]{:T(128)} constant(1)
  %begin = s32[]{:T(128)} copy(%first)
  %x.0 = bf16[32,8]{1,0:T(8,128)(2,1)} parameter(0), sharding={devices=[4,1]<=[4]}
  %w.0 = bf16[4,2,16]{2,1,0:T(8,128)(2,1)} parameter(1)
  %given = (s32[]{:T(128)}, bf16[32,8]{1,0:T(8,128)(2,1)}, bf16[4,2,16]{2,1,0:T(8,128)(2,1)}) tuple(%begin, %x.0, %w.0)
  %loop = (s32[]{:T(128)}, bf16[32,8]{1,0:T(8,128)(2,1)}, bf16[4,2,16]{2,1,0:T(8,128)(2,1)}) while(%given), \
condition=%condition, body=%body, metadata={op_name="jit(step)/while"}
  ROOT %result = bf16[32,8]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
}
"""
PRODUCT = 2 * 32 * 8 * 16  # operations of a turn
